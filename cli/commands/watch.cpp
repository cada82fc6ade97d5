#include "commands/watch.h"

#include <cstdio>
#include <iostream>

#include "engine/saved_cache.h"
#include "error.h"
#include "video/saliency.h"

namespace vidkv::cli {

namespace {

// Chat's questions are not known yet: there the tokens that attention goes to are protected.
std::vector<int64_t> protected_cells(const Model & model, const KvChoice & kv, const EncodedVideo & video,
                                     const std::vector<std::string> & questions) {
    if (kv.stock || kv.params.protect <= 0 || questions.front().empty()) return {};
    return salient_cells(model, video, questions, kv.params.protect);
}

std::string size_text(uint64_t bytes) {
    char text[32];
    if (bytes < 10 * 1024 * 1024)
        std::snprintf(text, sizeof(text), "%.1f KiB", static_cast<double>(bytes) / 1024);
    else
        std::snprintf(text, sizeof(text), "%.1f MiB", static_cast<double>(bytes) / (1024 * 1024));
    return text;
}

} // namespace

KvChoice AskOptions::kv() const {
    KvChoice choice = parse_kv(common.kv);
    if (protect > 0) protect_share(choice, protect);
    return choice;
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

void stream_answer(Session & session, const std::string & question) {
    session.ask(question, [](const std::string & text) { std::cout << text << std::flush; });
    std::cout << std::endl;
}

void add_shared(CLI::App & app, AskOptions & options) {
    options.common.add_model(app);
    app.add_option("--kv", options.common.kv,
                   "how the cache is kept (default " + std::string(DEFAULT_KV) + "): " + kv_names() + ". `vidkv presets` has their bits")
        ->envname("VIDKV_KV");
    app.add_option("--protect", options.protect,
                   "share of the tokens whose values get more bits: the visual tokens nearest to the question (ask), or those "
                   "that attention goes to (chat); the paper's, the same as a preset's -stp<share>")
        ->check(CLI::Range(0.0, 0.5));
    options.common.add_video(app);
    options.common.add_answer(app);
    app.add_option("--load-cache", options.load, "take the video from a saved cache; no VIDEO is named then");
}

} // namespace vidkv::cli
