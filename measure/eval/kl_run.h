// The KL protocol: one window of text, read once at full precision, then scored with each codec's cache.
//
//   1. the window but its last 256 tokens is decoded into an f16 cache; its state and its queries are kept
//   2. the last 256 tokens are decoded on that cache: the reference
//   3. for each codec: the state is restored, everything but the sink tokens and the residual window is packed, and the last 256
//      tokens are decoded; their own keys and values stay in f16
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "eval/contender.h"
#include "eval/divergence.h"
#include "eval/kl_windows.h"
#include "eval/text_prefix.h"

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

    // The layers that a preset packs: those with a sliding window stay in f16.
    std::vector<int> packed_layers(const Contender & contender) const;
    // Step 3. details: also the errors by channel.
    WindowResult score(const Contender & contender, bool details) const;

  private:
    std::span<const llama_token> scored() const { return std::span(window_.tokens).last(SCORED_TOKENS); }
    std::vector<float> score_tokens(TextContext & context) const;
    void add_errors(const Contender & contender, WindowResult & result) const;
    uint64_t f16_bytes(int64_t cells) const;

    const Window & window_;
    int64_t vocabulary_;
    TextPrefix prefix_;
    std::vector<std::vector<float>> rows_; // of each store, f16 cache
    std::vector<float> reference_;         // [SCORED_TOKENS][vocabulary]
};

} // namespace vidkv::cli
