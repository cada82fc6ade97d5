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
constexpr int rows_ahead = 32;
inline void prefetch_rows(const uint16_t * rows, int64_t stride, int count, int channels) {
    for (int t = 0; t < count; ++t)
        prefetch(reinterpret_cast<const uint8_t *>(rows + t * stride), static_cast<size_t>(channels) * sizeof(uint16_t));
}

struct Bytes {
    const uint8_t * at = nullptr;
    size_t count = 0;
};

// Bytes of the next page, fetched evenly while a kernel works on this one: many at once fill the core's miss buffers and block it.
// Work is counted in units: one per query row and token (scores), or per query row and channel (sums).
class Fetch {
  public:
    Fetch() = default;
    // All of it is to be fetched by the time that so many units are done.
    Fetch(Bytes first, Bytes second, int64_t units)
        : next_(first.at), end_(first.at + first.count), second_(second),
          per_unit_((static_cast<int64_t>(first.count + second.count) << shift) / std::max<int64_t>(units, 1) + 1) {}

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
        int64_t bytes = ((units * per_unit_ >> shift) + cache_line - 1) / cache_line * cache_line;
        if (end_ - next_ < bytes && second_.count > 0) { // what is left of the first at once
            Part(next_, end_).rest();
            bytes -= end_ - next_;
            next_ = second_.at;
            end_ = second_.at + second_.count;
            second_.count = 0;
        }
        const uint8_t * from = next_;
        next_ = end_ - next_ > bytes ? next_ + bytes : end_;
        return {from, next_};
    }
    void rest() {
        Part(next_, end_).rest();
        prefetch(second_.at, second_.count);
    }

  private:
    static constexpr int shift = 20;
    const uint8_t *next_ = nullptr, *end_ = nullptr;
    Bytes second_;
    int64_t per_unit_ = 0;
};

// What is fetched while the scores and while the sums of a page are computed.
struct Prefetch {
    Fetch during_scores, during_sums;
};

} // namespace vidkv
