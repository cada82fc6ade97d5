// OScaR, "Omni-Scaled Canalized Rotation" (arXiv 2605.19660, section 4, and the authors' kernels) at 2 bits: keys are turned by a Hadamard
// matrix, divided by the norm of their token over all heads, and rounded per channel in groups of 32 tokens; values are turned and
// rounded per token in groups of 32 channels. Zero is a code of its own: the zero points are whole numbers.
#include <algorithm>
#include <cmath>

#include "eval/reference_codecs/reference_codec.h"

namespace vidkv::cli {

namespace {

constexpr float TOP = 3; // of 2 bits
constexpr int GROUP = 32;

// A group's f16 scale and zero point; a token's norm, counted as f16 (the authors' kernels keep it in f32).
double bits(vidkv_side side, int heads, int head_dim) {
    const double codes = 2 + 32.0 / GROUP;
    return side == VIDKV_KEYS ? codes + 16.0 / (heads * head_dim) : codes;
}

// n numbers, `stride` apart.
void zero_point_round_trip(float * x, int64_t n, int64_t stride) {
    float low = x[0], high = x[0];
    for (int64_t i = 1; i < n; ++i) {
        low = std::min(low, x[i * stride]);
        high = std::max(high, x[i * stride]);
    }
    const float step = to_half((high - low) / TOP), zero = step > 0 ? std::round(-low / step) : 0;
    for (int64_t i = 0; i < n; ++i)
        x[i * stride] =
            step > 0 ? (std::clamp(std::round(x[i * stride] / step + zero), 0.0F, TOP) - zero) * step : to_half(low);
}

float norm(const float * x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += double{x[i]} * x[i];
    return sum > 0 ? to_half(static_cast<float>(std::sqrt(sum))) : 1;
}

void keys(const ReferenceRows & rows) {
    const int64_t row = int64_t{rows.heads} * rows.head_dim;
    std::vector<float> norms(static_cast<size_t>(rows.tokens));
    for (int64_t token = 0; token < rows.tokens; ++token) {
        float * x = rows.data + token * row;
        norms[static_cast<size_t>(token)] = norm(x, row);
        for (int64_t i = 0; i < row; ++i) x[i] /= norms[static_cast<size_t>(token)];
    }
    for (int64_t first = 0; first < rows.tokens; first += GROUP)
        for (int64_t channel = 0; channel < row; ++channel)
            zero_point_round_trip(rows.data + first * row + channel, std::min<int64_t>(GROUP, rows.tokens - first), row);
    for (int64_t token = 0; token < rows.tokens; ++token)
        for (int64_t i = 0; i < row; ++i) rows.data[token * row + i] *= norms[static_cast<size_t>(token)];
}

void values(const ReferenceRows & rows) {
    for (int64_t token = 0; token < rows.tokens; ++token)
        for (int head = 0; head < rows.heads; ++head)
            for (int channel = 0; channel < rows.head_dim; channel += GROUP)
                zero_point_round_trip(&rows.at(token, head, channel), std::min(GROUP, rows.head_dim - channel), 1);
}

void round_trip(const ReferenceRows & rows, vidkv_side side) {
    turn_heads(rows);
    side == VIDKV_KEYS ? keys(rows) : values(rows);
    turn_heads(rows);
}

} // namespace

ReferenceCodec oscar_omni2_reference() { return {"oscar-omni2", "OScaR INT2, arXiv 2605.19660", bits, round_trip}; }

} // namespace vidkv::cli
