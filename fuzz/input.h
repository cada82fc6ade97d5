// What the targets share: bytes of an input, and promises.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "vidkv/vidkv.h"

inline void demand(bool holds, const char * what) {
    if (holds) return;
    std::fprintf(stderr, "broken promise: %s (%s)\n", what, vidkv_last_error());
    std::abort();
}

// A value of a token: a picture, which tokens after the first of a page leave one way (`token` as it is), or not (0).
inline float scene(size_t channel, size_t token) {
    const float picture = static_cast<float>(channel * 31 % 17) / 8 - 1,
                way = static_cast<float>(channel * 13 % 11) / 5 - 1;
    return picture + static_cast<float>(token % VIDKV_PAGE) / 32 * way;
}

// Bytes of the input, zeros behind its end.
class Input {
  public:
    Input(const uint8_t * data, size_t size) : at_(data), end_(data + size) {}
    bool more() const { return at_ != end_; }
    uint32_t byte() { return more() ? *at_++ : 0; }
    uint32_t number() { return byte() << 8 | byte(); }

    const uint8_t * rest() const { return at_; }
    size_t left() const { return static_cast<size_t>(end_ - at_); }

  private:
    const uint8_t *at_, *end_;
};
