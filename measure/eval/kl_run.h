// The KL protocol: one window of text, read once at full precision, then scored with each codec's cache.
//
//   1. the window but its last 256 tokens is decoded into an f16 cache; its state and its queries are kept
//   2. the last 256 tokens are decoded on that cache: the reference
//   3. for each codec: the state is restored, everything but the sink tokens and the residual window is packed, and the last 256
//      tokens are decoded; their own keys and values stay in f16
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "eval/contender.h"
#include "eval/divergence.h"
#include "eval/kl_windows.h"
#include "engine/model.h"

namespace vidkv::cli {

// Squared errors of what is packed of one layer and side, by channel.
struct ChannelErrors {
    std::vector<double> error, variance; // of the contender; of the rows about the channel's mean
};

struct WindowResult {
    Divergence divergence;
    Packed packed;
    std::map<int, ChannelErrors> keys, values; // by layer
};

class WindowRun {
  public:
    // Does steps 1 and 2.
    WindowRun(const Model & model, const Window & window, int threads);
    ~WindowRun();
    WindowRun(const WindowRun &) = delete;
    WindowRun & operator=(const WindowRun &) = delete;

    // Step 3. details: also the errors by channel.
    WindowResult score(const Contender & contender, bool details);

  private:
    struct ContextDeleter {
        void operator()(llama_context * context) const { llama_free(context); }
    };
    using Context = std::unique_ptr<llama_context, ContextDeleter>;
    struct Queries {
        int heads = 0, head_dim = 0;
        std::vector<float> rows; // [tokens][heads][head_dim]
    };

    Context make_context(const KvChoice & kv) const;
    void read_prefix(llama_context * context);
    void restore(llama_context * context) const;
    void replay_queries() const;
    std::vector<float> score_tokens(llama_context * context) const;
    void add_errors(const Contender & contender, WindowResult & result) const;
    uint64_t f16_bytes(int64_t cells) const;
    static void hear(void * run, int32_t layer, int32_t sequence, const float * q, int64_t tokens, int32_t heads,
                     int64_t token_stride, int64_t head_stride);

    const Model & model_;
    const Window & window_;
    int threads_;
    int64_t vocabulary_;
    int64_t prefix_; // tokens
    std::map<int, Queries> queries_;
    std::vector<uint8_t> state_;
    std::vector<std::vector<float>> rows_; // of each store, f16 cache
    std::vector<float> reference_;         // [SCORED_TOKENS][vocabulary]
};

} // namespace vidkv::cli
