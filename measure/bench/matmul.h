// How long the weights of a 7B model take in a prefill, from its own matrix products on this machine.
#pragma once

#include <string>

namespace vidkv::cli {

struct PrefillEstimate {
    double seconds_per_token = 0;
    std::string method;
};

// One layer of Qwen2.5-7B (seven products of 512 tokens, q4_0 weights, repacked where ggml does that) times 28. Attention,
// the vision tower and the output layer are left out, so the real prefill takes longer.
PrefillEstimate estimate_prefill(int threads);

} // namespace vidkv::cli
