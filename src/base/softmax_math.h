// exp and tanh by the operations of the vector kernels, not by the C library: the same bits on every machine.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace vidkv {

// exp(x) = 2^n * 2^f with n = round(x / ln 2), |f| <= 1/2, and 2^f = 1 + f * polynomial, fitted for least relative error.
namespace exponential {
constexpr float lowest = -86.0f; // below: 0
constexpr float log2_e = 1.44269504f;
constexpr float rounder = 0x1.8p23f; // adding it leaves the nearest whole number in the low bits
constexpr float c[5] = {0x1.62e42ap-1f, 0x1.ebf9bcp-3f, 0x1.c6b752p-5f, 0x1.3cea88p-7f, 0x1.5bba14p-10f};
} // namespace exponential

// exp(x) for x <= 80 or so; not a number stays so.
inline float exp_weight(float x) {
    using namespace exponential;
    if (x < lowest) return 0.0f;
    const float shifted = std::fma(x, log2_e, rounder);
    const float whole = shifted - rounder;
    const float f = std::fma(x, log2_e, -whole);
    float p = std::fma(c[4], f, c[3]);
    p = std::fma(p, f, c[2]);
    p = std::fma(p, f, c[1]);
    p = std::fma(p, f, c[0]);
    p = std::fma(p, f, 1.0f);
    const uint32_t power = (std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u;
    return p * std::bit_cast<float>(power);
}

// 2^x, the same way: softmax counts scores in units of log 2.
namespace power_of_two_math {
constexpr float lowest = -124.0f; // below: 0
// 2^f to 2.9e-6, for weights that are rounded to 8 bits afterwards.
constexpr float coarse[4] = {0x1.62e12cp-1f, 0x1.ec0378p-3f, 0x1.c9fc46p-5f, 0x1.3a02ccp-7f};
} // namespace power_of_two_math

// 2^x = 2^whole * (1 + c[0] f + c[1] f^2 + ..)
template <int Count> float power_by(const float (&c)[Count], float x) {
    if (x < power_of_two_math::lowest) return 0.0f;
    const float shifted = x + exponential::rounder;
    const float f = x - (shifted - exponential::rounder);
    float p = c[Count - 1];
    for (int i = Count - 2; i >= 0; --i) p = std::fma(p, f, c[i]);
    p = std::fma(p, f, 1.0f);
    const uint32_t power = (std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u;
    return p * std::bit_cast<float>(power);
}
inline float power_of_two(float x) { return power_by(exponential::c, x); }
inline float coarse_power_of_two(float x) { return power_by(power_of_two_math::coarse, x); }

// tanh(x) = (1 - e) / (1 + e) with e = exp(-2|x|), the sign put back.
inline float tanh_score(float x) {
    const float e = exp_weight(-2.0f * std::fabs(x));
    return std::copysign((1.0f - e) / (1.0f + e), x);
}

// 2^(x - maximum) for x <= maximum; equal infinities are at distance 0.
inline float weight_below(float x, float maximum) { return x == maximum ? 1.0f : power_of_two(x - maximum); }

} // namespace vidkv
