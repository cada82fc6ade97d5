#include "options.h"

#include <cstdlib>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <limits>

#include <sched.h>

#include "error.h"

namespace vidkv::cli {

namespace {

constexpr int SMALL_MODEL_FRAME_TOKENS = 9; // it has seen no other size
constexpr double DEFAULT_TIMESTAMPS = 5;    // libmtmd's
constexpr double DEFAULT_FPS = 4, MOST_FPS = 1000;
constexpr double MOST_SECONDS = 1e9;

// "90", "1:30" or "0:01:30.5"; false if it is none of them.
bool parse_time(const std::string & text, double & seconds) {
    double sum = 0;
    int parts = 0;
    for (size_t at = 0; at <= text.size(); ++parts) {
        const size_t colon = std::min(text.find(':', at), text.size());
        double part = 0;
        const auto [rest, failed] = std::from_chars(text.data() + at, text.data() + colon, part, std::chars_format::fixed);
        if (failed != std::errc() || rest != text.data() + colon || !(part >= 0) || part > MOST_SECONDS) return false;
        sum = sum * 60 + part;
        at = colon + 1;
    }
    seconds = sum;
    return parts <= 3;
}

} // namespace

int available_cores() {
    cpu_set_t cores;
    return sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

void Options::add_model(CLI::App & app) {
    session.threads = available_cores();
    app.add_option("-m,--model", model, "GGUF of a video language model (default: the small model that comes with VidKV)")
        ->envname("VIDKV_MODEL");
    app.add_option("--mmproj", mmproj, "GGUF of its vision tower (default: the one mmproj*.gguf beside the model)")
        ->envname("VIDKV_MMPROJ");
    app.add_option("-t,--threads", session.threads, "threads (default: all cores)")
        ->envname("VIDKV_THREADS")
        ->check(CLI::Range(1, 1024));
    app.add_flag("-v,--verbose", verbose, "show what llama.cpp logs");
}

void Options::add_hub(CLI::App & app) {
    app.add_option(
           "--hf-repo", hub.name,
           "as llama.cpp's -hf (-hf works too): a model of Hugging Face, USER/MODEL or USER/MODEL:Q4_K_M, with its mmproj; "
           "fetched once, into llama.cpp's cache folder")
        ->type_name("REPO");
    app.add_flag("--offline", hub.offline, "with -hf: take only what was fetched before");
}

void Options::add_sampling(CLI::App & app) {
    app.add_option(
           "--fps", fps,
           "frames taken per second, at most those there are (default 4; LLaVA-OneVision: as many as --frames asks for)")
        ->envname("VIDKV_FPS")
        ->check(CLI::Range(0.001, MOST_FPS));
    app.add_option("--frames", frames,
                   "at most this many frames per video, evenly over it (default: no limit; LLaVA-OneVision: 32)")
        ->envname("VIDKV_FRAMES")
        ->check(CLI::Range(int64_t(1), std::numeric_limits<int64_t>::max() / 2));
    app.add_option(
           "--start", [this](const CLI::results_t & given) { return parse_time(given.front(), start); },
           "take nothing before this time: seconds, MM:SS or HH:MM:SS")
        ->type_name("TIME");
    app.add_option(
           "--end", [this](const CLI::results_t & given) { return parse_time(given.front(), end); },
           "take nothing from this time on")
        ->type_name("TIME");
    app.add_flag("--accept-damaged", accept_damaged, "take what can be decoded of a damaged video");
}

void Options::add_video(CLI::App & app) {
    add_sampling(app);
    app.add_option("--frame-tokens", frame_tokens,
                   "at most this many visual tokens per frame or frame pair, for models of any resolution")
        ->check(CLI::Range(1, 65536));
    app.add_option("--timestamps", timestamps,
                   "seconds between time stamps in the prompt, 0: none (default 5; the small model: 0)")
        ->check(CLI::Range(0.0, 1e6));
}

void Options::add_answer(CLI::App & app) {
    app.add_option("-c,--ctx-size", session.context, "tokens the context holds (default: as many as needed)")
        ->envname("VIDKV_CTX_SIZE")
        ->check(CLI::Range(int64_t(1), int64_t(1) << 30));
    app.add_option("-n,--predict", session.max_tokens, "at most this many tokens an answer (default 256)")
        ->envname("VIDKV_PREDICT")
        ->check(CLI::Range(1, 1 << 20));
    app.add_option("--system", system, "a system prompt, said before the video");
    app.add_option("--temp", session.temperature, "temperature; 0: always the likeliest token (default)")
        ->check(CLI::Range(0.0, 100.0));
    app.add_option("--top-k", session.top_k, "with --temp: only the K likeliest tokens (default 40; 0: all)")
        ->check(CLI::Range(0, 1 << 20))
        ->type_name("K");
    app.add_option("--top-p", session.top_p,
                   "with --temp: only the likeliest tokens that have this share together (default 0.95)")
        ->check(CLI::Range(0.0, 1.0));
    app.add_option("--seed", session.seed, "seed of the sampler (default 0)");
}

std::string Options::kv_name() const {
    if (!kv.empty()) return kv;
    const char * set = std::getenv("VIDKV_KV");
    return set && *set ? set : DEFAULT_KV;
}

void Options::fetch(Progress & progress) {
    if (hub.name.empty()) {
        if (hub.offline) throw UsageError("--offline belongs to -hf");
        return;
    }
    if (!model.empty()) throw UsageError("name a model with -hf or with -m, not both");
    hub.verbose = verbose;
    const ModelFiles files = fetch_model(hub, mmproj, progress);
    model = files.text;
    mmproj = files.mmproj;
}

ModelOptions Options::model_options() const {
    ModelOptions options;
    options.system = system;
    options.threads = session.threads;
    if (model.empty() && !mmproj.empty()) throw UsageError("--mmproj needs -m");
    options.files = model.empty() ? default_model() : ModelFiles{model, mmproj};
    if (options.files.mmproj.empty()) options.files.mmproj = mmproj_beside(model);
    options.small = std::filesystem::path(options.files.text).filename().string().starts_with("vidkv-tiny");
    options.frame_tokens = frame_tokens > 0 ? frame_tokens : options.small ? SMALL_MODEL_FRAME_TOKENS : 0;
    return options;
}

Sampling Options::sampling(const ModelFiles & files) const {
    const std::optional<LlavaOnevision> llava = read_llava_onevision(files.mmproj);
    Sampling sampling;
    sampling.fps = fps > 0 ? fps : llava ? MOST_FPS : DEFAULT_FPS;
    sampling.max_frames = frames > 0 || !llava ? frames : llava->frames;
    sampling.both_ends = llava.has_value();
    sampling.start = start;
    sampling.end = end;
    sampling.accept_damaged = accept_damaged;
    sampling.threads = session.threads;
    return sampling;
}

double Options::timestamp_seconds(const ModelOptions & loaded) const {
    return timestamps >= 0                                             ? timestamps
           : loaded.small || read_llava_onevision(loaded.files.mmproj) ? 0
                                                                       : DEFAULT_TIMESTAMPS;
}

} // namespace vidkv::cli
