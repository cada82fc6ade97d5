#include "commands/watch.h"

#include <chrono>
#include <cstdio>
#include <fstream>

#include <sys/resource.h>

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

bool unpacked(const KvChoice & kv, const KvReport & report) {
    return !kv.stock && kv.params.key_bits < 16 && !report.packed;
}

// --load-cache: the preset is the file's.
Watched restore(AskOptions & options, const std::vector<std::string> & questions, Progress & progress) {
    if (!options.common.system.empty())
        throw UsageError("--system is part of a saved cache: leave it out, or read the video anew");
    Watched watched;
    const std::string asked =
        options.common.kv.empty() && options.protect == 0 ? "" : options.kv(options.common.kv_name()).name;
    if (!std::ifstream(options.load))
        throw Error("cannot read the saved cache '" + options.load + "': no such file, or no permission");
    options.common.fetch(progress);
    const ModelOptions model_options = options.common.model_options();
    const SavedCache saved = load_cache(options.load, model_options.files, asked);
    watched.kv = parse_kv(saved.kv);
    watched.model = std::make_unique<Model>(model_options, watched.kv);
    watched.session =
        std::make_unique<Session>(*watched.model, watched.kv, options.common.session, saved.prefix.tokens, questions);
    watched.session->restore(saved.prefix, saved.state);
    return watched;
}

std::string listed(const std::vector<std::string> & videos) {
    std::string names;
    for (const std::string & video : videos) names += (names.empty() ? "" : ", ") + video;
    return names;
}

} // namespace

KvChoice AskOptions::kv(const std::string & name) const {
    KvChoice choice = parse_kv(name);
    if (protect > 0) protect_share(choice, protect);
    return choice;
}

uint64_t peak_bytes() {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

Watched watch(AskOptions & options, const std::vector<std::string> & questions, Progress & progress) {
    Watched watched;
    watched.kv = options.kv(options.common.kv_name());
    if (!options.load.empty()) return restore(options, questions, progress);
    if (!options.save.empty()) check_savable(options.save);
    options.common.fetch(progress);
    const ModelOptions model_options = options.common.model_options();
    const Readers readers =
        open_videos(options.videos, options.common.sampling(model_options.files)); // before the model is loaded
    watched.model = std::make_unique<Model>(model_options, watched.kv);
    const auto start = std::chrono::steady_clock::now();
    const EncodedVideo video =
        encode_videos(*watched.model, readers, options.common.timestamp_seconds(*watched.model), progress);
    watched.read_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    watched.session =
        std::make_unique<Session>(*watched.model, watched.kv, options.common.session, video.tokens, questions);
    watched.session->prefill(video, listed(options.videos), protected_cells(*watched.model, watched.kv, video, questions),
                             progress);
    progress.clear();
    if (!options.save.empty())
        save_cache(options.save, {watched.kv.name, watched.session->prefix(), watched.session->state()},
                   model_options.files);
    return watched;
}

void print_summary(const Watched & watched) {
    const Session & session = *watched.session;
    const VideoPrefix & prefix = session.prefix();
    const KvReport report = session.kv_report();
    std::fprintf(stderr, "%lld frames, %lld visual tokens | KV %s: %s held, %s in f16 | %.2f true bits%s | %.1f tokens/s\n",
                 static_cast<long long>(prefix.frames), static_cast<long long>(prefix.visual_tokens),
                 watched.kv.name.c_str(), size_text(report.bytes).c_str(), size_text(report.bytes_f16).c_str(),
                 report.true_bits, unpacked(watched.kv, report) ? ", nothing old enough to be packed yet" : "",
                 session.tokens_per_second());
    std::fprintf(stderr, "read %.1f s, prefill %.1f s, decode %.1f s (%lld tokens) | %s of memory at most\n",
                 watched.read_seconds, session.prefill_seconds(), session.decode_seconds(),
                 static_cast<long long>(session.generated()), size_text(peak_bytes()).c_str());
}

void add_shared(CLI::App & app, AskOptions & options) {
    options.common.add_model(app);
    options.common.add_hub(app);
    const auto said = [](const std::string & name) {
        return name.empty() ? "no preset '': see vidkv presets" : std::string();
    };
    app.add_option("--kv", options.common.kv,
                   "how the cache is kept (default " + std::string(DEFAULT_KV) + "): " + kv_names() +
                       ". `vidkv presets` has their bits [VIDKV_KV]")
        ->check(said)
        ->type_name("PRESET");
    app.add_option(
           "--protect", options.protect,
           "share of the tokens whose values get more bits: the visual tokens nearest to the question (ask), or those "
           "that attention goes to (chat); the paper's, the same as a preset's -stp<share>")
        ->check(CLI::Range(0.0, 0.5));
    options.common.add_video(app);
    options.common.add_answer(app);
    app.add_option("--load-cache", options.load, "take the video from a saved cache; no VIDEO is named then");
}

} // namespace vidkv::cli
