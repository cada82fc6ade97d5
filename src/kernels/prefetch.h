#pragma once

#include <cstddef>
#include <cstdint>

namespace vidkv {

// Bytes of the next page, fetched evenly while kernels work on this one: many at once fill the core's miss buffers and block it.
// Work is counted in units: one per query row and token (scores), or per query row and channel (sums).
class Prefetch {
  public:
    void add(const uint8_t * bytes, size_t n) {
        parts_[count_++] = {bytes, bytes + n};
        lines_ += static_cast<int64_t>(n / line_bytes) + 1;
    }
    // All lines are to be fetched by the time that this much work is done.
    void spread_over(int64_t units) { units_per_line_ = lines_ > 0 ? units / lines_ + 1 : units; }
    void worked(int64_t units) {
        for (owed_ += units; owed_ >= units_per_line_ && at_ < count_; owed_ -= units_per_line_) {
            Part & part = parts_[at_];
            __builtin_prefetch(part.next);
            part.next += line_bytes;
            if (part.next >= part.end) ++at_;
        }
    }
    void all() { worked(lines_ * units_per_line_); }

  private:
    static constexpr int line_bytes = 64;
    struct Part {
        const uint8_t *next, *end;
    };
    Part parts_[4];
    int count_ = 0, at_ = 0;
    int64_t lines_ = 0, units_per_line_ = 1, owed_ = 0;
};

} // namespace vidkv
