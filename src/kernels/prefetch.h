#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace vidkv {

constexpr int cache_line = 64;

inline void prefetch(const uint8_t * bytes, size_t n) {
    for (size_t at = 0; at < n; at += cache_line) __builtin_prefetch(bytes + at);
}

// Kernels on f16 rows look so many rows ahead.
constexpr int rows_ahead = 16;
inline void prefetch_rows(const uint16_t * rows, int64_t stride, int count, int channels) {
    for (int t = 0; t < count; ++t)
        prefetch(reinterpret_cast<const uint8_t *>(rows + t * stride), static_cast<size_t>(channels) * sizeof(uint16_t));
}

// Bytes of the next page, fetched evenly while a kernel works on this one: many at once fill the core's miss buffers and block it.
// Work is counted in units: one per query row and token (scores), or per query row and channel (sums).
class Fetch {
  public:
    Fetch() = default;
    // All of it is to be fetched by the time that so many units are done.
    Fetch(const uint8_t * bytes, size_t n, int64_t units)
        : next_(bytes), end_(bytes + n), per_unit_((static_cast<int64_t>(n) << shift) / std::max<int64_t>(units, 1) + 1) {}

    // The part that goes with some units of work, to be fetched line by line without a branch.
    class Part {
      public:
        Part(const uint8_t * next, const uint8_t * end) : next_(next), end_(end) {}
        void line() {
            __builtin_prefetch(next_);
            next_ = next_ + cache_line < end_ ? next_ + cache_line : end_;
        }
        void rest() {
            for (; next_ < end_; next_ += cache_line) __builtin_prefetch(next_);
        }

      private:
        const uint8_t *next_, *end_;
    };
    Part part(int64_t units) {
        const uint8_t * from = next_;
        const int64_t bytes = ((units * per_unit_ >> shift) + cache_line - 1) / cache_line * cache_line;
        next_ = end_ - next_ > bytes ? next_ + bytes : end_;
        return {from, next_};
    }

  private:
    static constexpr int shift = 20;
    const uint8_t *next_ = nullptr, *end_ = nullptr;
    int64_t per_unit_ = 0;
};

// What is fetched while the scores and while the sums of a page are computed.
struct Prefetch {
    Fetch during_scores, during_sums;
};

} // namespace vidkv
