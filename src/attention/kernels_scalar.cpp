// The specification of the kernels: plain loops, sums in rising order.
#include <cmath>

#include "attention/kernels.h"
#include "base/half.h"

namespace vidkv {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

void open_keys(const uint16_t * rows, int64_t stride, int count, int head_dim, int tokens, float * tile) {
    for (int c = 0; c < head_dim; ++c) {
        for (int t = 0; t < tokens; ++t) *tile++ = t < count ? half_to_float(rows[t * stride + c]) : 0.0f;
    }
}

bool open_values(const uint16_t * rows, int64_t stride, int count, int head_dim, float * tile) {
    bool finite = true;
    for (int t = 0; t < count; ++t) {
        for (int c = 0; c < head_dim; ++c) {
            const float value = half_to_float(rows[t * stride + c]);
            finite = finite && std::isfinite(value);
            *tile++ = value;
        }
    }
    return finite;
}

bool load_mask(const uint16_t * mask, int n, float * bias) {
    bool visible = false;
    for (int i = 0; i < n; ++i) {
        bias[i] = half_to_float(mask[i]);
        visible = visible || bias[i] != -infinity;
    }
    return visible;
}

void multiply_add(const Product & p) {
    for (int r = 0; r < p.rows; ++r) {
        float * out = p.out + r * p.out_stride;
        for (int j = 0; j < p.inner; ++j) {
            const float a = p.a[r * p.a_stride + j];
            const float * m = p.m + j * p.m_stride;
            for (int c = 0; c < p.width; ++c) out[c] += a * m[c];
        }
    }
}

float score(float dot, const ScoreRule & rule, const float * bias, float slope) {
    if (bias && *bias == -infinity) return -infinity;
    float s = rule.scale * dot;
    if (rule.softcap != 0.0f) s = rule.softcap * std::tanh(s);
    return bias ? s + slope * *bias : s;
}

// exp(x - maximum) with x <= maximum; equal infinities are at distance 0.
float weight(float x, float maximum) { return x == maximum ? 1.0f : std::exp(x - maximum); }

float softmax_step(float * dots, int n, const ScoreRule & rule, const float * bias, float slope, SoftmaxState & state) {
    const float old_maximum = state.maximum;
    bool not_a_number = false;
    for (int i = 0; i < n; ++i) {
        dots[i] = score(dots[i], rule, bias ? bias + i : nullptr, slope);
        if (dots[i] > state.maximum) state.maximum = dots[i];
        not_a_number = not_a_number || std::isnan(dots[i]);
    }
    if (state.maximum == -infinity) { // nothing seen yet that has a weight
        for (int i = 0; i < n; ++i) dots[i] = 0.0f;
        if (not_a_number) state.sum = std::numeric_limits<float>::quiet_NaN();
        return 1.0f;
    }
    const float factor = weight(old_maximum, state.maximum);
    float sum = 0.0f;
    for (int i = 0; i < n; ++i) {
        dots[i] = weight(dots[i], state.maximum);
        sum += dots[i];
    }
    state.sum = state.sum * factor + sum;
    return factor;
}

void scale(float * x, int n, float factor) {
    for (int i = 0; i < n; ++i) x[i] *= factor;
}

} // namespace

const Kernels scalar_kernels = {"scalar", open_keys, open_values, load_mask, multiply_add, softmax_step, scale};

} // namespace vidkv
