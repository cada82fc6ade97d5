// The mean of a still page's rotated values, which all tokens of a head share: 12 bits for each channel under one scale. What does
// not move in a picture is in it, and the codes are left with the rest.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/log_scale.h"

namespace vidkv {

constexpr uint8_t still_mark = 255; // in place of the last slot's scale

// u8 scale of the last slot, u8 scale of the mean, i8 upper[head_dim], u8 lower[head_dim / 2]: channel c is scale / 2048 times
// (16 upper[c] + its half byte of `lower`), where byte j has channel j in its lower half and channel j + head_dim / 2 in its upper one.
constexpr size_t page_mean_bytes(int head_dim) {
    return 2 + static_cast<size_t>(head_dim) + static_cast<size_t>(head_dim / 2);
}

inline void load_page_mean(const uint8_t * bytes, int head_dim, float * mean) {
    const float step = log_scale_value(bytes[1]) / 2048.0f;
    const uint8_t *upper = bytes + 2, *lower = upper + head_dim;
    const int half = head_dim / 2;
    for (int c = 0; c < half; ++c) {
        mean[c] = step * static_cast<float>(16 * static_cast<int8_t>(upper[c]) + (lower[c] & 15));
        mean[c + half] = step * static_cast<float>(16 * static_cast<int8_t>(upper[c + half]) + (lower[c] >> 4));
    }
}

// The nearest mean that the bytes can say -> bytes, and back into `mean`; the last slot's scale is left alone.
void store_page_mean(float * mean, int head_dim, uint8_t * bytes);

} // namespace vidkv
