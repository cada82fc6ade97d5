// 2-bit codes between a minimum and a maximum, shared by keys and values (paper, section 3.1).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "base/half.h"

namespace vidkv {

constexpr float half_max = 65504.0f;

// Codecs take any float: NaN and infinities count as 0, other numbers are clamped to the range of f16.
inline float sanitize(float x) { return std::isfinite(x) ? std::clamp(x, -half_max, half_max) : 0.0f; }

// x is about minimum + scale * code, code = 0..3; scale and minimum as they are stored.
struct TwoBit {
    uint16_t scale, minimum; // f16

    // The tightest range around [low, high] that survives its own rounding: decoded to f16 and coded again it is the same.
    static TwoBit between(float low, float high) {
        TwoBit range{float_to_half((high - low) / 3.0f), float_to_half(low)};
        for (int i = 0; i < 4; ++i) { // once is enough but for ties
            const float top = half_to_float(float_to_half(std::min(range.value(3), half_max)));
            const uint16_t scale = float_to_half((top - half_to_float(range.minimum)) / 3.0f);
            if (scale == range.scale) break;
            range.scale = scale;
        }
        return range;
    }
    uint8_t code(float x) const {
        const float step = half_to_float(scale);
        if (step == 0.0f) return 0;
        const float level = std::floor((x - half_to_float(minimum)) / step + 0.5f);
        return static_cast<uint8_t>(std::clamp(level, 0.0f, 3.0f));
    }
    float value(unsigned code) const { return half_to_float(minimum) + half_to_float(scale) * static_cast<float>(code); }
};

} // namespace vidkv
