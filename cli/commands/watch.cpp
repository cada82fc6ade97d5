#include "commands/watch.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>

#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include "engine/video_cache.h"
#include "engine/video_file.h"
#include "error.h"
#include "engine/saliency.h"

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

// Everything but the video that its cells depend on. Questions: where a share of the tokens is protected by them.
std::string sampling_text(const AskOptions & options, const KvChoice & kv, const std::vector<std::string> & questions) {
    const Options & common = options.common;
    nlohmann::json facts = {{"fps", common.fps},
                            {"frames", common.frames},
                            {"start", common.start},
                            {"end", std::isinf(common.end) ? -1 : common.end},
                            {"accept_damaged", common.accept_damaged},
                            {"frame_tokens", common.frame_tokens},
                            {"timestamps", common.timestamps},
                            {"system", common.system}};
    if (!kv.stock && kv.params.protect > 0) facts["questions"] = questions;
    return facts.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// What was said on the command line must be what the file was taken with.
void check_sampling(const AskOptions & options, const VideoFile & file) {
    const Options & common = options.common;
    const nlohmann::json saved = nlohmann::json::parse(file.manifest().sampling, nullptr, false);
    const auto check = [&](const char * option, const char * name, double value, bool said) {
        const bool known = saved.is_object() && saved.contains(name) && saved[name].is_number();
        if (!said || (known && saved[name] == value)) return;
        throw Error("the saved cache '" + file.path() + "' was taken with another " + option +
                    ": leave it out, or read the video anew");
    };
    check("--fps", "fps", common.fps, common.fps > 0);
    check("--frames", "frames", static_cast<double>(common.frames), common.frames > 0);
    check("--start", "start", common.start, common.start > 0);
    check("--end", "end", common.end, !std::isinf(common.end));
    check("--frame-tokens", "frame_tokens", common.frame_tokens, common.frame_tokens > 0);
    check("--timestamps", "timestamps", common.timestamps, common.timestamps >= 0);
}

// A session for what the file holds, empty. The vision tower has done its work.
Watched session_for(const AskOptions & options, ModelOptions model_options, const VideoFile & file,
                    const std::vector<std::string> & questions) {
    Watched watched;
    watched.manifest = file.manifest();
    watched.kv = parse_kv(watched.manifest.kv);
    model_options.vision = false;
    watched.model = std::make_unique<Model>(model_options, watched.kv);
    watched.session =
        std::make_unique<Session>(*watched.model, watched.kv, options.common.session, watched.manifest.used, questions);
    return watched;
}

// --load-cache: the preset is the file's.
Watched restore(AskOptions & options, const std::vector<std::string> & questions, Progress & progress) {
    if (!options.common.system.empty())
        throw UsageError("--system is part of a saved cache: leave it out, or read the video anew");
    const std::string asked =
        options.common.kv.empty() && options.protect == 0 ? "" : options.kv(options.common.kv_name()).name;
    const VideoFile file(options.load, true, options.common.session.threads);
    options.common.fetch(progress);
    const ModelOptions model_options = options.common.model_options();
    check_origin(file, model_options.files, asked);
    check_sampling(options, file);
    Watched watched = session_for(options, model_options, file, questions);
    watched.session->restore(file);
    return watched;
}

// What tells this video, as it is asked for, from others; nothing where its bytes cannot be read twice.
std::optional<VideoKey> key_of(const AskOptions & options, const ModelOptions & model_options, const KvChoice & kv,
                               const std::vector<std::string> & questions) {
    VideoKey key{options.videos, manifest_of(model_options.files)};
    key.manifest.kv = kv.name;
    key.manifest.sampling = sampling_text(options, kv, questions);
    for (const std::string & name : options.videos) {
        std::optional<WatchedFile> file = look_at(name);
        if (!file) return std::nullopt;
        key.manifest.files.push_back(std::move(*file));
    }
    return key;
}

void warn(Progress & progress, const std::string & line) {
    progress.clear();
    std::fprintf(stderr, "vidkv: %s\n", line.c_str());
}

std::string listed(const std::vector<std::string> & videos) {
    std::string names;
    for (const std::string & video : videos) names += (names.empty() ? "" : ", ") + video;
    return names;
}

// 0: not known.
int64_t expected_frames(const Readers & readers) {
    int64_t frames = 0;
    for (const auto & reader : readers) {
        if (reader->expected() == 0) return 0;
        frames += reader->expected();
    }
    return frames;
}

// Null where the video has to be watched.
std::unique_ptr<Watched> from_cache(const AskOptions & options, const ModelOptions & model_options,
                                    const VideoCache & cache, const VideoKey & key,
                                    const std::vector<std::string> & questions, Progress & progress) {
    std::string complaint;
    std::unique_ptr<VideoFile> file = cache.find(key, options.common.session.threads, complaint);
    if (!complaint.empty()) warn(progress, complaint);
    if (!file) {
        const Readers readers = open_videos(options.videos, options.common.sampling(model_options.files));
        file = cache.find_pictures(key, expected_frames(readers), options.common.session.threads, [&] {
            return pictures_of(readers, options.common.timestamp_seconds(model_options), progress);
        });
    }
    if (!file) return nullptr;
    auto watched = std::make_unique<Watched>(session_for(options, model_options, *file, questions));
    try {
        watched->session->restore(*file);
        watched->session->name_video(listed(options.videos));
    } catch (const Error & error) {
        warn(progress, std::string(error.what()) + "; the video is read anew");
        return nullptr;
    }
    watched->from_cache = true;
    return watched;
}

// An answer does not depend on it: where the video cannot be kept, one line says why.
void keep(const VideoCache & cache, const VideoKey & key, const Session & session, Progress & progress) {
    try {
        cache.keep(key, [&](const std::string & path, const Manifest & manifest) { session.save(path, manifest); });
    } catch (const Error & error) {
        warn(progress, std::string("the video is not kept for the next question: ") + error.what());
    }
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

namespace {

Watched read_video(const AskOptions & options, const ModelOptions & model_options, const KvChoice & kv,
                   const std::vector<std::string> & questions, Progress & progress) {
    Watched watched;
    watched.kv = kv;
    const Readers readers =
        open_videos(options.videos, options.common.sampling(model_options.files)); // before the model is loaded
    watched.model = std::make_unique<Model>(model_options, watched.kv);
    const auto start = std::chrono::steady_clock::now();
    const EncodedVideo video =
        encode_videos(*watched.model, readers, options.common.timestamp_seconds(model_options), progress);
    watched.read_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    watched.session =
        std::make_unique<Session>(*watched.model, watched.kv, options.common.session, video.tokens, questions);
    watched.manifest.pictures = video.pictures;
    watched.session->prefill(video, listed(options.videos), protected_cells(*watched.model, watched.kv, video, questions),
                             progress);
    progress.clear();
    return watched;
}

} // namespace

Watched watch(AskOptions & options, const std::vector<std::string> & questions, Progress & progress) {
    const KvChoice kv = options.kv(options.common.kv_name());
    if (!options.save.empty()) check_savable(options.save);
    if (!options.load.empty()) {
        Watched watched = restore(options, questions, progress);
        if (!options.save.empty()) watched.save(options.save);
        return watched;
    }
    options.common.fetch(progress);
    const ModelOptions model_options = options.common.model_options();
    const VideoCache cache;
    const bool packed = !kv.stock && kv.params.key_bits < 16; // others are measured against, and large
    std::optional<VideoKey> key = key_of(options, model_options, kv, questions);
    const bool cached = key && cache.keeps() && packed && !options.no_cache;
    std::unique_ptr<Watched> found =
        cached ? from_cache(options, model_options, cache, *key, questions, progress) : nullptr;
    Watched watched = found ? std::move(*found) : read_video(options, model_options, kv, questions, progress);
    if (!found) {
        Manifest manifest = key ? key->manifest : manifest_of(model_options.files);
        manifest.sampling = sampling_text(options, kv, questions);
        manifest.pictures = watched.manifest.pictures;
        if (key) key->manifest.pictures = manifest.pictures;
        watched.manifest = std::move(manifest);
    }
    if (cached && !found) keep(cache, *key, *watched.session, progress);
    if (!options.save.empty()) watched.save(options.save);
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
    char read[64] = "watched before (--no-cache reads it anew)";
    if (!watched.from_cache)
        std::snprintf(read, sizeof(read), "read %.1f s, prefill %.1f s", watched.read_seconds, session.prefill_seconds());
    std::fprintf(stderr, "%s, decode %.1f s (%lld tokens) | %s of memory at most\n", read, session.decode_seconds(),
                 static_cast<long long>(session.generated()), size_text(peak_bytes()).c_str());
}

void add_shared(CLI::App & app, AskOptions & options) {
    options.common.add_model(app);
    options.common.add_hub(app);
    const auto said = [](const std::string & name) {
        return name.empty() ? "no preset '': see vidkv presets" : std::string();
    };
    app.add_option(
           "--kv", options.common.kv,
           "how the cache is kept (default " + std::string(DEFAULT_KV) + "): " + kv_names() +
               ". `vidkv presets` has their bits; PRESET@FILE spreads them over the layers (vidkv eval layers) [VIDKV_KV]")
        ->check(said)
        ->type_name("PRESET");
    app.add_option(
           "--protect", options.protect,
           "share of the tokens whose values get more bits: the visual tokens nearest to the question (ask), or those "
           "that attention goes to (chat); the paper's, the same as a preset's -stp<share>")
        ->check(CLI::Range(0.0, 0.5));
    options.common.add_video(app);
    options.common.add_answer(app);
    app.add_option("--load-cache", options.load, "take the video from a saved cache; no VIDEO is named then")
        ->type_name("FILE");
    app.add_flag("--no-cache", options.no_cache,
                 "watch the video even if it was watched before, and do not keep it (vidkv videos --help)");
}

} // namespace vidkv::cli
