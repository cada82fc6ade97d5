// vidkv ask and vidkv chat.
#include <cstdio>
#include <iostream>
#include <memory>

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "error.h"
#include "interrupt.h"
#include "engine/logs.h"
#include "options.h"
#include "video/saliency.h"
#include "engine/saved_cache.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr int CHAT_QUESTION_TOKENS = 512; // room for a question that is not known yet

struct AskOptions {
    Options common;
    std::string video;
    std::vector<std::string> words; // positional arguments
    std::string save, load;
    double protect = 0;
    bool json = false;

    // --kv with --protect.
    KvChoice kv() const {
        KvChoice choice = parse_kv(common.kv);
        if (protect > 0) protect_share(choice, protect);
        return choice;
    }
};

// A loaded model and a session with the video in its cache.
struct Watched {
    std::unique_ptr<Model> model;
    std::unique_ptr<Session> session;
};

// Chat's questions are not known yet: there the tokens that attention goes to are protected.
std::vector<int64_t> protected_cells(const Model & model, const KvChoice & kv, const EncodedVideo & video,
                                     const std::vector<std::string> & questions) {
    if (kv.stock || kv.params.protect <= 0 || questions.front().empty()) return {};
    return salient_cells(model, video, questions, kv.params.protect);
}

Watched watch(const AskOptions & options, const std::vector<std::string> & questions, Progress & progress) {
    const KvChoice kv = options.kv();
    if (options.load.empty()) probe_video(options.video); // before the model is loaded
    Watched watched;
    const ModelOptions model_options = options.common.model_options();
    if (!options.load.empty()) {
        const SavedCache saved = load_cache(options.load, model_options.files, kv.name);
        watched.model = std::make_unique<Model>(model_options, kv);
        watched.session =
            std::make_unique<Session>(*watched.model, kv, options.common.session, saved.prefix.tokens, questions);
        watched.session->restore(saved.prefix, saved.state);
        return watched;
    }
    watched.model = std::make_unique<Model>(model_options, kv);
    const EncodedVideo video =
        encode_video(*watched.model, options.video, options.common.watch_options(*watched.model), progress);
    watched.session = std::make_unique<Session>(*watched.model, kv, options.common.session, video.tokens, questions);
    watched.session->prefill(video, options.video, protected_cells(*watched.model, kv, video, questions), progress);
    progress.clear();
    if (!options.save.empty())
        save_cache(options.save, {watched.session->prefix(), watched.session->state()}, model_options.files, kv.name);
    return watched;
}

std::string size_text(uint64_t bytes) {
    char text[32];
    if (bytes < 10 * 1024 * 1024)
        std::snprintf(text, sizeof(text), "%.1f KiB", static_cast<double>(bytes) / 1024);
    else
        std::snprintf(text, sizeof(text), "%.1f MiB", static_cast<double>(bytes) / (1024 * 1024));
    return text;
}

void print_summary(const Session & session, const std::string & kv) {
    const VideoPrefix & prefix = session.prefix();
    const KvReport report = session.kv_report();
    std::fprintf(stderr, "%lld frames, %lld visual tokens | KV %s: %s held, %s in f16 | %.2f true bits | %.1f tokens/s\n",
                 static_cast<long long>(prefix.frames), static_cast<long long>(prefix.visual_tokens), kv.c_str(),
                 size_text(report.bytes).c_str(), size_text(report.bytes_f16).c_str(), report.true_bits,
                 session.tokens_per_second());
}

std::string trim(const std::string & text) {
    const size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

void print_report(const Session & session, const std::string & kv, const Json & answers) {
    const VideoPrefix & prefix = session.prefix();
    const KvReport report = session.kv_report();
    const Json document = {{"video", prefix.video},
                           {"frames", prefix.frames},
                           {"visual_tokens", prefix.visual_tokens},
                           {"kv", kv},
                           {"kv_bytes", report.bytes},
                           {"kv_bytes_f16", report.bytes_f16},
                           {"true_bits", report.true_bits},
                           {"tokens_per_s", session.tokens_per_second()},
                           {"answers", answers}};
    std::cout << document.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

void stream_answer(Session & session, const std::string & question) {
    session.ask(question, [](const std::string & text) { std::cout << text << std::flush; });
    std::cout << std::endl;
}

void run_ask(AskOptions & options) {
    if (options.load.empty() && !options.words.empty()) {
        options.video = options.words.front();
        options.words.erase(options.words.begin());
    }
    const std::vector<std::string> & questions = options.words;
    if (questions.empty()) throw UsageError("a question is missing: vidkv ask VIDEO QUESTION...");
    for (const std::string & question : questions)
        if (trim(question).empty()) throw UsageError("a question is empty");
    capture_logs(options.common.verbose);
    Progress progress(options.json);
    const Watched watched = watch(options, questions, progress);
    Json answers = Json::array();
    for (const std::string & question : questions) {
        if (options.json) {
            answers.push_back(
                {{"question", question}, {"answer", trim(watched.session->ask(question, [](const std::string &) {}))}});
            continue;
        }
        if (questions.size() > 1) std::cout << question << " ";
        stream_answer(*watched.session, question);
    }
    if (options.json) print_report(*watched.session, options.kv().name, answers);
    if (!options.json) print_summary(*watched.session, options.kv().name);
}

// One line of standard input; false at its end.
bool read_question(std::string & line) {
    if (isatty(STDIN_FILENO)) std::cerr << "> " << std::flush;
    const bool got = static_cast<bool>(std::getline(std::cin, line));
    check_interrupt();
    line = trim(line);
    return got && line != "/quit" && line != "/exit";
}

void run_chat(AskOptions & options) {
    if (options.load.empty() == options.video.empty()) throw UsageError("name either a VIDEO or --load-cache FILE");
    capture_logs(options.common.verbose);
    Progress progress(false);
    options.common.session.spare_tokens = CHAT_QUESTION_TOKENS;
    const Watched watched = watch(options, {""}, progress);
    if (isatty(STDIN_FILENO)) std::cerr << "Ask about the video. Each question stands alone; /quit or Ctrl-D ends.\n";
    for (std::string line; read_question(line);)
        if (!line.empty()) stream_answer(*watched.session, line);
    print_summary(*watched.session, options.kv().name);
}

void add_shared(CLI::App & app, AskOptions & options) {
    options.common.add_model(app);
    app.add_option("--kv", options.common.kv,
                   "how the cache is kept: " + kv_names() + " (default k2v2; stock, q8_0 and q4_0 are llama.cpp's own)")
        ->envname("VIDKV_KV");
    app.add_option("--protect", options.protect,
                   "share of the tokens whose values get more bits: the visual tokens nearest to the question (ask), or those "
                   "that attention goes to (chat); the same as a preset's -stp<share>")
        ->check(CLI::Range(0.0, 0.5));
    options.common.add_video(app);
    options.common.add_answer(app);
    app.add_option("--load-cache", options.load, "take the video from a saved cache; no VIDEO is named then");
}

} // namespace

void add_ask(CLI::App & app, Command & run) {
    auto options = std::make_shared<AskOptions>();
    CLI::App * ask = app.add_subcommand("ask", "Answer questions about a video file");
    ask->add_option("VIDEO", options->words, "the video file, then one or more questions about it")
        ->type_name("QUESTION...");
    add_shared(*ask, *options);
    ask->add_option("--save-cache", options->save, "keep the video's cache in this file, for --load-cache");
    ask->add_flag("--json", options->json, "print one JSON document instead of text");
    ask->callback([options, &run] { run = [options] { run_ask(*options); }; });
}

void add_chat(CLI::App & app, Command & run) {
    auto options = std::make_shared<AskOptions>();
    CLI::App * chat = app.add_subcommand("chat", "Keep asking about a video file, one question per line");
    chat->add_option("VIDEO", options->video, "the video file");
    add_shared(*chat, *options);
    chat->add_option("--save-cache", options->save, "keep the video's cache in this file, for --load-cache");
    chat->callback([options, &run] { run = [options] { run_chat(*options); }; });
}

} // namespace vidkv::cli
