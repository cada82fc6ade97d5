#include "codec/log_scale.h"

#include <algorithm>
#include <cmath>

namespace vidkv {

namespace {

// 2^((2i+1)/16): the geometric middle between mantissas i and i + 1.
constexpr float middle[8] = {1.04427378f, 1.13878863f, 1.24185781f, 1.35425555f,
                             1.47682615f, 1.61049033f, 1.75625216f, 1.91520656f};

} // namespace

uint8_t log_scale_code(float s) {
    if (!(s > 0.0f)) return 0;
    if (!std::isfinite(s)) return 255;
    int exponent;
    const float mantissa = 2.0f * std::frexp(s, &exponent); // [1, 2), exponent one too high
    int eighths = 0;
    while (eighths < 8 && mantissa >= middle[eighths]) ++eighths;
    const int code = 128 + 8 * (exponent - 1) + eighths;
    return code < 1 ? 0 : static_cast<uint8_t>(std::min(code, 255));
}

} // namespace vidkv
