// The specification of the kernels: plain loops. Sums of floats run in 16 lanes, which are added up in a fixed tree, and products
// are added with one rounding: what vector registers do.
#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"
#include "base/softmax_math.h"
#include "base/bytes.h"
#include "base/half.h"
#include "codec/log_scale.h"
#include "codec/rotation.h"
#include "codec/trit.h"
#include "kernels/quad_order.h"

namespace vidkv {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr int lanes = 16;

// Lane i takes elements i, i + 16, ..; then lanes i and i + 8 are added, i and i + 4, and so on.
struct LaneSum {
    float lane[lanes] = {};
    float total() const {
        float s[lanes];
        std::copy_n(lane, lanes, s);
        for (int half = lanes / 2; half > 0; half /= 2) {
            for (int i = 0; i < half; ++i) s[i] += s[i + half];
        }
        return s[0];
    }
};

void unpack_quads(QuadCode code, const uint8_t * packed, int rows, int quads, int stride, uint8_t * levels) {
    const size_t bytes = quad_bytes(code, rows);
    for (int q = 0; q < quads; ++q) unpack_quad(code, packed + q * bytes, rows, levels + static_cast<int64_t>(q) * stride);
}

void unpack_ternary(const uint8_t * packed, int bytes, uint8_t * levels) {
    for (int j = 0; j < bytes; ++j) {
        uint8_t digits[5];
        unpack_trits(packed[j], digits);
        for (int d = 0; d < 5; ++d) levels[d * bytes + j] = digits[d];
    }
}

void load_grid(const uint8_t * scales, const uint8_t * minima, int n, float middle, float * step, float * center) {
    for (int i = 0; i < n; ++i) {
        step[i] = half_to_float(load_at<uint16_t>(scales, static_cast<size_t>(i)));
        center[i] = std::fma(middle, step[i], half_to_float(load_at<uint16_t>(minima, static_cast<size_t>(i))));
    }
}

void load_halves(const uint8_t * halves, int n, float * out) {
    for (int i = 0; i < n; ++i) out[i] = half_to_float(load_at<uint16_t>(halves, static_cast<size_t>(i)));
}

void load_log_scales(const uint8_t * codes, int n, float unit, float * out) {
    for (int i = 0; i < n; ++i) out[i] = log_scale_value(codes[i]) * unit;
}

void load_key_scales(const uint8_t * meta, int n, const float * unit, float * step, float * center) {
    for (int c = 0; c < n; ++c) {
        const float scale = log_scale_value(meta[c]), mean = 0.125f * static_cast<float>(static_cast<int8_t>(meta[n + c]));
        step[c] = scale * unit[c];
        center[c] = scale * mean;
    }
}

MaskKind load_mask(const uint16_t * mask, int n, float * bias) {
    int hidden = 0, zero = 0;
    for (int i = 0; i < n; ++i) {
        hidden += mask[i] == 0xfc00;
        zero += mask[i] == 0;
    }
    if (hidden == n || zero == n) return hidden == n ? MaskKind::hidden : MaskKind::zero;
    for (int i = 0; i < n; ++i) bias[i] = half_to_float(mask[i]);
    return MaskKind::mixed;
}

// The whole number next to x * y, ties to even: adding the rounder leaves it in the low bits. NaN becomes an arbitrary number.
int8_t round_product(float x, float y) {
    return static_cast<int8_t>(std::bit_cast<uint32_t>(std::fma(x, y, exponential::rounder)));
}

// The value of an int8 factor of 1, so that the largest magnitude becomes 127, and its inverse.
struct FactorScale {
    float scale, inverse;
    FactorScale(float largest, float least) {
        largest = std::max(largest, least);
        scale = largest / 127.0f;
        inverse = 127.0f / largest;
    }
};

// A row's scale, the same for all groups of the page.
FactorScale fold_scale(const float * q, const KeySteps & keys) {
    float largest = 0.0f;
    for (int g = 0; g < keys.groups; ++g) {
        for (int c = 0; c < keys.channels; ++c) {
            const float p = std::fabs(q[c] * keys.step[g * keys.channels + c]);
            largest = p > largest ? p : largest;
        }
    }
    return {largest, least_query_factor};
}

void fold_row(const float * q, int row, const KeySteps & keys, int group, const FactorScale & factor, float base,
              FoldedQueries & out) {
    const float *step = keys.step + group * keys.channels, *center = keys.center + group * keys.channels;
    LaneSum centers;
    int32_t offset[lanes] = {}; // bytes are multiplied by fours
    for (int c = 0; c < keys.channels; ++c) {
        const float scaled = q[c] * factor.inverse;
        float & lane = centers.lane[c % lanes];
        if (c < keys.centered) lane = std::fma(scaled, center[c], lane);
        const int8_t rounded = round_product(scaled, step[c]);
        offset[c / 4 % lanes] += rounded * keys.offset[c];
        out.q[(c / operand_bytes * row_block + row) * operand_bytes + c % operand_bytes] = rounded;
    }
    for (int i = 0; i < lanes; ++i) centers.lane[i] = std::fma(static_cast<float>(offset[i]), 0.5f, -centers.lane[i]);
    out.scale[row] = factor.scale;
    out.offset[row] = centers.total();
    out.base[row] = base;
}

void fold_queries(const float * queries, int64_t stride, int rows, const KeySteps & keys, const float * base,
                  FoldedQueries * out) {
    for (int r = 0; r < rows; ++r) {
        const float * q = queries + r * stride;
        const FactorScale factor = fold_scale(q, keys);
        for (int g = 0; g < keys.groups; ++g) fold_row(q, r, keys, g, factor, base[r], out[g]);
    }
}

void score_levels(const KeyProduct & p) {
    for (int r = 0; r < p.rows; ++r) {
        for (int t = p.first_token; t < p.first_token + p.tokens; ++t) {
            int32_t dot = 0;
            for (const KeyRun * run = p.runs; run != p.runs + p.run_count; ++run) {
                for (const KeyQuad * k = p.quads + run->first; k != p.quads + run->first + run->quads; ++k) {
                    const int8_t * q = p.folded->q + k->factors + r * operand_bytes;
                    for (int i = 0; i < 4; ++i) dot += q[i] * p.levels[(k->quad * page_tokens + t) * 4 + i];
                }
            }
            const float centered = static_cast<float>(dot) - p.folded->offset[r];
            p.scores[r * page_tokens + t] = std::fma(centered, p.folded->scale[r], p.folded->base[r]);
        }
    }
}

void score_halves(const float * queries, int64_t stride, int rows, const HalfRows & keys, float * scores) {
    for (int r = 0; r < rows; ++r) {
        for (int t = 0; t < keys.count; ++t) {
            LaneSum dot;
            for (int c = 0; c < keys.head_dim; ++c) {
                float & lane = dot.lane[c % lanes];
                lane = std::fma(queries[r * stride + c], half_to_float(keys.rows[t * keys.stride + c]), lane);
            }
            scores[r * page_tokens + t] = dot.total();
        }
    }
}

float score(float x, float softcap, const float * bias, float slope) {
    if (softcap != 0.0f) x = softcap * tanh_score(x);
    if (!bias) return x;
    return *bias == -infinity ? -infinity : std::fma(slope, *bias, x);
}

// A score of +infinity takes all the weight; several of them share it.
void only_infinities(float * scores) {
    for (int t = 0; t < page_tokens; ++t) {
        if (scores[t] == scores[t]) scores[t] = scores[t] == infinity ? 0.0f : -infinity;
    }
}

// Returns the reference that weights are relative to; factor: multiplies what was accumulated relative to the old one.
float raise_reference(SoftmaxState & state, float largest, float & factor) {
    factor = 1.0f;
    if (largest == infinity) {
        if (state.reference != infinity) factor = 0.0f;
        state.reference = infinity;
    } else if (largest > state.reference + reference_slack) {
        factor = power_of_two(state.reference - largest);
        state.reference = largest;
    }
    return state.reference == -infinity || largest == infinity ? 0.0f : state.reference;
}

bool softmax_by(float (*power)(float), const SoftmaxTile & tile) {
    bool rescales = false;
    for (int r = 0; r < tile.rows; ++r) {
        float * scores = tile.scores + r * page_tokens;
        float largest = -infinity;
        for (int t = 0; t < page_tokens; ++t) {
            const float * bias = tile.bias && tile.bias[r] ? tile.bias[r] + t : nullptr;
            scores[t] = score(scores[t], tile.softcap, bias, bias ? tile.slopes[r] : 0.0f);
            largest = scores[t] > largest ? scores[t] : largest;
        }
        if (largest == infinity) only_infinities(scores);
        const float reference = raise_reference(tile.states[r], largest, tile.factors[r]);
        rescales = rescales || tile.factors[r] != 1.0f;
        LaneSum sum;
        for (int t = 0; t < page_tokens; ++t) {
            scores[t] = power(scores[t] - reference);
            sum.lane[t % lanes] += scores[t];
        }
        tile.states[r].sum = std::fma(tile.states[r].sum, tile.factors[r], sum.total());
    }
    return rescales;
}

bool softmax(const SoftmaxTile & tile) { return softmax_by(power_of_two, tile); }

// In 16 lanes.
float dot_16(const float * weights, const float * along) {
    LaneSum sum;
    for (int s = 0; s < page_tokens; ++s) {
        float & lane = sum.lane[s % lanes];
        lane = std::fma(weights[s], along[s], lane);
    }
    return sum.total();
}

void pack_weights(const float * weights, int rows, const WeightRule & rule, PackedWeights & out) {
    for (int r = 0; r < rows; ++r) {
        float plain[page_tokens], scaled[page_tokens];
        float largest = 0.0f;
        for (int s = 0; s < page_tokens; ++s) {
            plain[s] = weights[r * page_tokens + (rule.token ? rule.token[s] : s)];
            scaled[s] = rule.slot_scale ? plain[s] * rule.slot_scale[s] : plain[s];
            largest = scaled[s] > largest ? scaled[s] : largest;
        }
        const FactorScale factor(largest, least_weight_factor);
        out.scale[r] = factor.scale;
        if (rule.along) out.along[r] = dot_16(plain, rule.along);
        const int size = page_tokens / rule.groups;
        for (int group = 0; group < rule.groups; ++group) {
            LaneSum sum, total;
            for (int s = group * size; s < (group + 1) * size; ++s) {
                const int8_t rounded = round_product(scaled[s], factor.inverse);
                out.w[r * operand_bytes + s] = rounded;
                sum.lane[s % lanes] += rounded;
                float & lane = total.lane[s % lanes];
                lane = rule.slot_scale ? lane + plain[s] : std::fma(plain[s], factor.inverse, lane);
            }
            out.sum[group][r] = sum.total();
            for (float & lane : total.lane) lane *= rule.slot_scale ? factor.inverse : 1.0f;
            if (rule.totals) out.total[group][r] = total.total();
        }
    }
}

bool weigh(const SoftmaxTile & tile, const WeightRule & rule, PackedWeights & out) {
    const bool rescales = softmax_by(coarse_power_of_two, tile);
    pack_weights(tile.scores, tile.rows, rule, out);
    return rescales;
}

float dot_of(const ValueProduct & p, const ValueGroup & g, int row, int channel) {
    int32_t dot = 0;
    for (const LevelRun * run = g.runs; run != g.runs + g.run_count; ++run) {
        for (int s = 4 * run->first; s < 4 * (run->first + run->quads); ++s) {
            dot +=
                p.weights[row * operand_bytes + s] * p.levels[static_cast<int64_t>(s / 4) * p.stride + channel * 4 + s % 4];
        }
    }
    return static_cast<float>(dot);
}

void add_levels(const ValueProduct & p) {
    for (int r = 0; r < p.rows; ++r) {
        for (int c = 0; c < p.channels; ++c) {
            float sum = 0.0f;
            for (const ValueGroup * g = p.group; g != p.group + p.groups; ++g) {
                const float centered = dot_of(p, *g, r, c) - g->offset[r];
                sum = g->step ? std::fma(g->step[c], centered, sum) : sum + centered;
                if (g->center) sum = std::fma(g->center[c], g->total[r], sum);
            }
            float & out = p.out[r * p.out_stride + c];
            out = std::fma(sum, p.scale[r], out);
        }
    }
}

void add_halves(const float * weights, int rows, const HalfRows & values, float * out, int64_t out_stride) {
    for (int r = 0; r < rows; ++r) {
        for (int t = 0; t < values.count; ++t) {
            const float w = weights[r * page_tokens + t];
            if (w == 0.0f) continue; // a hidden cell may hold an infinity, and 0 * infinity is NaN
            for (int c = 0; c < values.head_dim; ++c) {
                float & sum = out[r * out_stride + c];
                sum = std::fma(w, half_to_float(values.rows[t * values.stride + c]), sum);
            }
        }
    }
}

void scale(float * x, int n, float factor) {
    for (int i = 0; i < n; ++i) x[i] *= factor;
}

void add_scaled(const float * x, float factor, int n, float * out) {
    for (int i = 0; i < n; ++i) out[i] = std::fma(x[i], factor, out[i]);
}

} // namespace

const Kernels scalar_kernels = {
    "scalar",  unpack_quads,       unpack_ternary, load_halves,  load_log_scales, load_key_scales, load_grid,
    load_mask, sort_quads_plainly, fold_queries,   score_levels, nullptr,         score_halves,    softmax,
    weigh,     pack_weights,       add_levels,     nullptr,      add_halves,      scale,           add_scaled,
    hadamard};

} // namespace vidkv
