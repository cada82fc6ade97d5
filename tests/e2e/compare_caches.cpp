// compare_caches MODEL MMPROJ VIDEO KV...: what each cache makes of the same video and the same tokens after it, as JSON. The
// first is what the others are compared with: `kl`, the mean divergence of their next-token distributions from its own.
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <string>

#include <nlohmann/json.hpp>

#include "engine/logs.h"
#include "engine/session.h"
#include "error.h"
#include "engine/encode.h"

using namespace vidkv::cli;

namespace {

constexpr const char * QUESTION = "What colour is the circle?";
constexpr int TOKENS = 24, THREADS = 2, FRAMES = 32;

// Tokens that any vocabulary has: none that the model would choose, but the same for every cache.
std::vector<llama_token> spoken(const Model & model) {
    std::vector<llama_token> tokens;
    const int vocabulary = llama_vocab_n_tokens(model.vocab());
    for (int i = 0; i < TOKENS; ++i) tokens.push_back((i * 37 + 11) % std::min(vocabulary, 256));
    return tokens;
}

// Rows of log-probabilities.
double divergence(const std::vector<float> & from, const std::vector<float> & to) {
    double sum = 0;
    for (size_t i = 0; i < from.size(); ++i)
        if (std::isfinite(from[i])) sum += std::exp(double(from[i])) * (double(from[i]) - double(to[i]));
    return sum / (TOKENS + 1);
}

struct Run {
    std::vector<float> logprobs;
    nlohmann::ordered_json figures;
};

ModelOptions model_options(char ** argv) {
    ModelOptions options;
    options.files = {argv[1], argv[2]};
    options.threads = THREADS;
    return options;
}

EncodedVideo encode(char ** argv) {
    const Model model(model_options(argv), parse_kv("stock"));
    Sampling sampling;
    sampling.max_frames = FRAMES;
    Progress progress(true);
    return encode_videos(model, open_videos({argv[3]}, sampling), 0, progress);
}

Run run(char ** argv, const EncodedVideo & video, const std::string & name) {
    const KvChoice kv = parse_kv(name);
    const Model model(model_options(argv), kv);
    SessionOptions options;
    options.max_tokens = TOKENS;
    options.threads = THREADS;
    Session session(model, kv, options, video.tokens, {QUESTION});
    Progress progress(true);
    session.prefill(video, "video", {}, progress);
    Run result;
    result.logprobs = session.answer_distributions(QUESTION, spoken(model));
    const KvReport report = session.kv_report();
    result.figures = {{"kv", name},
                      {"frames", video.frames},
                      {"visual_tokens", video.visual_tokens},
                      {"head_dim", model.head_dim()},
                      {"bytes", report.bytes},
                      {"bytes_f16", report.bytes_f16},
                      {"packed", report.packed}};
    return result;
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 5) return 2;
    capture_logs(std::getenv("VERBOSE") != nullptr);
    try {
        nlohmann::ordered_json all = nlohmann::json::array();
        const EncodedVideo video = encode(argv);
        std::vector<float> first;
        for (int i = 4; i < argc; ++i) {
            Run done = run(argv, video, argv[i]);
            if (first.empty()) first = done.logprobs;
            done.figures["kl"] = divergence(first, done.logprobs);
            all.push_back(done.figures);
        }
        std::cout << all.dump() << std::endl;
    } catch (const std::exception & error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return 0;
}
