// Tiny GGUF models with random weights and no vocabulary: one per way of attending that the plug-in must get right.
#pragma once

#include <cstdint>
#include <string>

namespace vidkv_test {

struct ModelShape {
    std::string architecture =
        "llama"; // llama, gemma2 (softcap, sliding window), mpt (ALiBi), gpt-oss (sinks, sliding window)
    uint32_t layers = 3;
    uint32_t width = 128;
    uint32_t heads = 4;
    uint32_t kv_heads = 2;
    uint32_t head_dim = 64;
    uint32_t sliding_window = 64; // where the architecture has one
    uint32_t vocabulary = 300;
};

// A model whose cache has this shape, and whose weights are next to nothing.
ModelShape cache_shape(int layers, int heads, int kv_heads, int head_dim);

// Writes the model to a file in `folder` ("": the system's for temporary files) and returns its path.
std::string write_random_model(const ModelShape & shape, uint32_t seed, const std::string & folder = "");

} // namespace vidkv_test
