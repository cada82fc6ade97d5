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

// tanh(x) = (1 - e) / (1 + e) with e = exp(-2|x|), the sign put back.
inline float tanh_score(float x) {
    const float e = exp_weight(-2.0f * std::fabs(x));
    return std::copysign((1.0f - e) / (1.0f + e), x);
}

// exp(x - maximum) for x <= maximum; equal infinities are at distance 0.
inline float weight_below(float x, float maximum) { return x == maximum ? 1.0f : exp_weight(x - maximum); }

} // namespace vidkv
