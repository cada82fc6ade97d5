// What the queries of one sequence look like to the keys they read: E[q q^T] for each KV head, newer queries counting more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace vidkv {

class QueryStatistics {
  public:
    QueryStatistics(int kv_heads, int head_dim);

    // q: [tokens][heads][head_dim] with strides in elements; heads a multiple of kv_heads. A token with an element that is
    // not finite, or is beyond 1e6, does not count; in batches of a few tokens (decoding) only every fourth token counts.
    // The result does not depend on the number of threads, bit for bit. Throws std::bad_alloc, and is then as it was.
    void observe(const float * q, int64_t tokens, int heads, int64_t token_stride, int64_t head_stride, int threads = 1);

    // Every token counts, and none more than another: the result does not depend on how tokens come in batches, bit for bit.
    void count(const float * q, int64_t tokens, int heads, int64_t token_stride, int64_t head_stride);
    // Becomes what `other` has seen, as if it were so many tokens. `other` has the same shape.
    void begin_with(const QueryStatistics & other, int tokens);

    bool empty() const { return sampled_ == 0; }
    // E[q_i q_j] times a factor that is the same for all heads; E[q_i] times its own.
    double second(int head, int i, int j) const;
    double mean(int head, int i) const;
    void second(int head, double * out) const; // all of a head's: [head_dim][head_dim]
    void save(std::vector<uint8_t> & out) const;
    bool load(ByteReader & in); // of the same shape
    size_t bytes() const { return bytes_for(kv_heads_, head_dim_); }
    static size_t bytes_for(int kv_heads, int head_dim) {
        const size_t n = static_cast<size_t>(head_dim);
        return (n * (n + 1) / 2 + n) * static_cast<size_t>(kv_heads) * sizeof(float);
    }

  private:
    struct Sample; // a batch's tokens that count
    void add(const Sample & sample, int kv_head, int from, int to, float decay);

    int kv_heads_, head_dim_;
    size_t triangle_;           // elements per head
    std::vector<float> second_; // [kv_heads][lower triangle by rows], decayed sums
    std::vector<float> mean_;   // [kv_heads][head_dim], likewise
    double weight_ = 0;         // the decayed number of query rows per head
    int64_t seen_ = 0, sampled_ = 0;
};

} // namespace vidkv
