// What the tokens of a still page share of their rotated values: a mean, and on some pages a direction along which each of them lies
// somewhere. What does not move in a picture is in the mean, what moves one way in the direction; the codes are left with the rest.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/log_scale.h"

namespace vidkv {

constexpr uint8_t still_mark = 255; // in place of the last slot's scale
constexpr int least_along = -8, most_along = 7;

// A vector of head_dim numbers of 12 bits: i8 upper[head_dim], u8 lower[head_dim / 2]. Channel c is scale / 2048 times
// (16 upper[c] + its half byte of `lower`), where byte j has channel j in its lower half and channel j + head_dim / 2 in its upper one.
constexpr size_t shared_vector_bytes(int head_dim) {
    return static_cast<size_t>(head_dim) + static_cast<size_t>(head_dim / 2);
}

// The mean's block: u8 scale of the last slot, u8 scale of the mean, the mean. Where its scale is 0, which no mean has, the page has a
// direction, whose block stands before it: u8 scale of the mean, u8 scale of the direction, the direction, then how far along it each
// slot lies in 4 bits with a sign: byte j has slot j in its lower half and slot j + slots / 2 in its upper one.
constexpr size_t page_mean_bytes(int head_dim) { return 2 + shared_vector_bytes(head_dim); }
constexpr size_t page_direction_bytes(int head_dim, int slots) {
    return 2 + shared_vector_bytes(head_dim) + static_cast<size_t>(slots / 2);
}

inline void load_shared_vector(uint8_t scale, const uint8_t * numbers, int head_dim, float * out) {
    const float step = log_scale_value(scale) / 2048.0f;
    const uint8_t *upper = numbers, *lower = upper + head_dim;
    const int half = head_dim / 2;
    for (int c = 0; c < half; ++c) {
        out[c] = step * static_cast<float>(16 * static_cast<int8_t>(upper[c]) + (lower[c] & 15));
        out[c + half] = step * static_cast<float>(16 * static_cast<int8_t>(upper[c + half]) + (lower[c] >> 4));
    }
}

// The nearest vector that the bytes can say -> numbers, and back into `vector`; returns its scale.
uint8_t store_shared_vector(float * vector, int head_dim, uint8_t * numbers);

// -8 .. 7
constexpr int half_byte_with_sign(int bits) { return (bits & 7) - (bits & 8); }

inline void load_along(const uint8_t * bytes, int slots, float * along) {
    for (int j = 0; j < slots / 2; ++j) {
        along[j] = static_cast<float>(half_byte_with_sign(bytes[j]));
        along[j + slots / 2] = static_cast<float>(half_byte_with_sign(bytes[j] >> 4));
    }
}
void store_along(const float * along, int slots, uint8_t * bytes);

} // namespace vidkv
