// Scales in one byte: 0 is zero, u is 2^((u - 128) / 8).
#pragma once

#include <bit>
#include <cstdint>

namespace vidkv {

// Mantissas 2^(i/8), rounded to f32.
inline constexpr float log_scale_mantissa[8] = {1.0f,        1.09050773f, 1.18920712f, 1.29683955f,
                                                1.41421356f, 1.54221083f, 1.68179283f, 1.83400809f};

// Exact: the mantissa times a power of two.
inline float log_scale_value(uint8_t u) {
    if (u == 0) return 0.0f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(log_scale_mantissa[u & 7]) +
                                (((static_cast<uint32_t>(u) >> 3) - 16u) << 23));
}

// The nearest step on the logarithmic scale, 1..255; 0 if s is not above 0 or is less than half the smallest step.
uint8_t log_scale_code(float s);

// The smallest step that is not below s, if there is one.
inline uint8_t log_scale_at_least(float s) {
    const uint8_t code = log_scale_code(s);
    return log_scale_value(code) < s && code < 255 ? static_cast<uint8_t>(code + 1) : code;
}

} // namespace vidkv
