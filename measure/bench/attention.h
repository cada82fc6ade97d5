// What takes part in vidkv bench attention: ggml's flash attention on its own cache types, and vidkv_attention on presets.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "parse_tokens.h"
#include "vidkv/vidkv.h"

namespace vidkv::cli {

struct AttentionShape {
    int heads = 0, kv_heads = 0, head_dim = 0;
    int channels() const { return kv_heads * head_dim; }
    std::string name() const; // "28/4/128"
};

// "28/4/128": query heads / KV heads / head_dim. Throws UsageError.
AttentionShape parse_shape(const std::string & text);

// Gaussian keys and values: a block of rows, taken again and again.
class TokenRows {
  public:
    static constexpr int64_t BLOCK = 4096;
    explicit TokenRows(int channels);
    int channels() const { return channels_; }
    const float * keys() const { return keys_.data(); }
    const float * values() const { return values_.data(); }

  private:
    int channels_;
    std::vector<float> keys_, values_; // [BLOCK][channels]
};

std::vector<float> gaussian(size_t n, uint64_t seed);

// Queries that weigh the channels as unevenly as a model's do, so that trellis keys get all their widths.
constexpr int64_t OBSERVED_QUERIES = 64;
std::vector<float> uneven_queries(const AttentionShape & shape); // [OBSERVED_QUERIES][heads][head_dim]

// One attention call, the same for all: queries that are the newest of `cells` cells.
struct AttentionCall {
    AttentionShape shape;
    int64_t past = 0;  // tokens before the batch, packed but for the residual window
    int64_t fresh = 0; // tokens of the batch that lie in the cache after them, in f16
    int64_t query_tokens = 0;
    int sequences = 1;          // so many at once, each with the same queries
    int64_t common = 0;         // cells that they have in common: packed caches hold them once, ggml's each for itself
    std::vector<float> q;       // [query_tokens][heads][head_dim]
    std::vector<uint16_t> mask; // f16 [query_tokens][cells], causal, as llama.cpp makes it
    int64_t cells() const { return past + fresh; }
};

AttentionCall make_call(const AttentionShape & shape, int64_t past, int64_t fresh, int64_t query_tokens);

class AttentionContender {
  public:
    virtual ~AttentionContender() = default;
    virtual const std::string & name() const = 0;
    // Bytes of keys and values that a call reads.
    virtual uint64_t bytes() const = 0;
    // Brings the cache to what the call finds; pasts come in rising order.
    virtual void prepare(const AttentionCall & call, int threads) = 0;
    // The timed part. The result stays in output() until the next run.
    virtual void run() = 0;
    virtual std::vector<float> output() const = 0; // [query_tokens][heads][head_dim]
    // What the cache holds, decoded: f16 [cells][channels].
    virtual std::vector<uint16_t> content(vidkv_side side) const = 0;
};

// How ggml's cache lies in memory.
enum class Layout {
    BY_HEAD, // the cells of a KV head side by side: the quickest for ggml
    BY_CELL, // the heads of a cell side by side: what llama.cpp has
};

// type: F16, Q8_0 or Q4_0. Capacity in cells.
std::unique_ptr<AttentionContender> make_ggml_contender(ggml_type type, Layout layout, const AttentionShape & shape,
                                                        int64_t capacity, const TokenRows & rows);
std::unique_ptr<AttentionContender> make_packed_contender(const std::string & preset, const AttentionShape & shape,
                                                          int64_t capacity, const TokenRows & rows);

// The instruction set that the ggml in this process was compiled for: "avx512", "avx2", "neon", or "scalar".
std::string ggml_isa();

// Relative rms difference of a contender's output to attention in double on what its cache holds.
double output_error(const AttentionContender & contender, const AttentionCall & call);

} // namespace vidkv::cli
