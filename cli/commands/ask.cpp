// vidkv ask.
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "commands/watch.h"
#include "engine/logs.h"
#include "error.h"
#include "text.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

void print_report(const Watched & watched, const Json & answers) {
    const Session & session = *watched.session;
    const VideoPrefix & prefix = session.prefix();
    const KvReport report = session.kv_report();
    const Json document = {{"video", prefix.video},
                           {"frames", prefix.frames},
                           {"visual_tokens", prefix.visual_tokens},
                           {"kv", watched.kv.name},
                           {"kv_bytes", report.bytes},
                           {"kv_bytes_f16", report.bytes_f16},
                           {"true_bits", report.true_bits},
                           {"tokens_per_s", session.tokens_per_second()},
                           {"read_s", watched.read_seconds},
                           {"prefill_s", session.prefill_seconds()},
                           {"decode_s", session.decode_seconds()},
                           {"tokens", session.generated()},
                           {"packed", report.packed},
                           {"peak_bytes", peak_bytes()},
                           {"answers", answers}};
    std::cout << document.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

// One answer on standard output, as it grows.
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
    if (options.json) print_report(watched, answers);
    if (!options.json) print_summary(watched);
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
    ask->footer(R"(EXAMPLES
  vidkv ask clip.mp4 "What colour is the circle?"
  vidkv ask clip.mp4 "First question" "Second question" --json
  vidkv ask clip.mp4 "What happens?" -m Qwen2.5-VL-7B.gguf --mmproj mmproj.gguf --frames 64
  vidkv ask clip.mp4 "What happens?" -hf ggml-org/Qwen2.5-VL-3B-Instruct-GGUF:Q4_K_M
  vidkv ask clip.mp4 "First question" --save-cache clip.cache
  vidkv ask --load-cache clip.cache "Second question")");
    ask->callback([options, &run] { run = [options] { run_ask(*options); }; });
}

} // namespace vidkv::cli
