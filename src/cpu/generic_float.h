// The kernels on floats, for any instruction set: included inside the anonymous namespace of kernels_<isa>.cpp, which has defined
// F, 16 floats, and what is done with them. Every operation and its order are those of kernels_scalar.cpp.

constexpr int lanes = 16;
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float smallest_factor = 1e-30f;

void load_halves(const uint8_t * halves, int n, float * out) {
    int i = 0;
    for (; i + lanes <= n; i += lanes) store(out + i, halves_16(halves + 2 * i));
    if (i + 8 <= n) {
        store_8(out + i, halves_8(halves + 2 * i));
        i += 8;
    }
    for (; i < n; ++i) out[i] = half_to_float(load_at<uint16_t>(halves, static_cast<size_t>(i)));
}

void load_log_scales(const uint8_t * codes, int n, float * out) {
    int i = 0;
    for (; i + lanes <= n; i += lanes) store(out + i, log_scales_16(codes + i));
    for (; i < n; ++i) out[i] = log_scale_value(codes[i]);
}

void load_key_scales(const uint8_t * meta, int n, const float * unit, float * step, float * center) {
    int c = 0;
    for (; c + lanes <= n; c += lanes) {
        const F scale = log_scales_16(meta + c), mean = mul(splat(0.125f), signed_bytes_16(meta + n + c));
        store(step + c, mul(scale, load(unit + c)));
        store(center + c, mul(scale, mean));
    }
    for (; c < n; ++c) {
        const float scale = log_scale_value(meta[c]), mean = 0.125f * static_cast<float>(static_cast<int8_t>(meta[n + c]));
        step[c] = scale * unit[c];
        center[c] = scale * mean;
    }
}

MaskKind load_mask(const uint16_t * mask, int n, float * bias) {
    MaskBits bits;
    int i = 0;
    for (; i + lanes <= n; i += lanes) {
        bits.add(mask + i);
        store(bias + i, halves_16(mask + i));
    }
    bool all_hidden = bits.all_hidden(), all_zero = bits.all_zero();
    for (; i < n; ++i) {
        bias[i] = half_to_float(mask[i]);
        all_hidden = all_hidden && mask[i] == 0xfc00;
        all_zero = all_zero && mask[i] == 0;
    }
    return all_hidden ? MaskKind::hidden : all_zero ? MaskKind::zero : MaskKind::mixed;
}

// exp for softmax weights: weight.h.
INLINE F exp_16(F x) {
    using namespace exponential;
    const F shifted = fma(x, splat(log2_e), splat(rounder));
    const F whole = sub(shifted, splat(rounder));
    const F f = fma_less(x, splat(log2_e), whole);
    F p = fma(splat(c[4]), f, splat(c[3]));
    p = fma(p, f, splat(c[2]));
    p = fma(p, f, splat(c[1]));
    p = fma(p, f, splat(c[0]));
    p = fma(p, f, splat(1.0f));
    return times_power_or_zero(p, shifted, whole, x, lowest);
}

INLINE F tanh_16(F x) {
    const F one = splat(1.0f), e = exp_16(mul(splat(-2.0f), absolute(x)));
    return with_sign_of(divide(sub(one, e), add(one, e)), x);
}

// What 127 stands for in up to 16 rows, and what to multiply with to get there; both 0 for nothing but zeros.
struct FactorScales {
    alignas(64) float scale[lanes], inverse[lanes];
    INLINE void set(F largest) {
        store(scale, divide(largest, splat(127.0f)));
        store(inverse, where_above(largest, smallest_factor, divide(splat(127.0f), largest)));
    }
};

// Lanes of `rows` rows -> one number a row. Rows that are missing become copies of the first: no fold of theirs is read.
using RowLanes = F[row_block];
INLINE void complete(RowLanes & x, int rows) {
    for (int r = rows; r < row_block; ++r) x[r] = x[0];
}
INLINE F sum_rows(RowLanes & x, int rows) {
    complete(x, rows);
    return sum_of_8(x);
}
INLINE F largest_of_rows(RowLanes & x, int rows) {
    complete(x, rows);
    return largest_of_8(x);
}

// A row's largest |query * step|, over all groups: they share a scale.
template <int R> FactorScales fold_scales(const float * queries, int64_t stride, const KeySteps & keys) {
    RowLanes most;
    for (int r = 0; r < R; ++r) most[r] = splat(0.0f);
    for (int c = 0; c < keys.channels; c += lanes) {
        F step = load(keys.step + c);
        for (int g = 1; g < keys.groups; ++g) step = larger(load(keys.step + g * keys.channels + c), step);
        for (int r = 0; r < R; ++r) most[r] = larger_magnitude(mul(load(queries + r * stride + c), step), most[r]);
    }
    FactorScales factors;
    factors.set(largest_of_rows(most, R));
    return factors;
}

// One group: columns of 64 channels, all rows side by side in registers.
template <int R>
void fold_group(const float * queries, int64_t stride, const KeySteps & keys, int group, const FactorScales & factors,
                const float * base, FoldedQueries & out) {
    const float * step = keys.step + group * keys.channels, * center = keys.center + group * keys.channels;
    I offsets[R];
    F inverse[R];
    for (int r = 0; r < R; ++r) {
        offsets[r] = no_ints();
        inverse[r] = splat(factors.inverse[r]);
    }
    for (int c = 0; c < keys.channels; c += 4 * lanes) {
        int8_t * to = out.q + c / operand_bytes * row_block * operand_bytes + c % operand_bytes;
        for (int r = 0; r < R; ++r, to += operand_bytes) {
            I rounded[4];
            for (int i = 0; i < 4; ++i) {
                const int at = c + i * lanes;
                rounded[i] = round_to_int(mul(mul(load(queries + r * stride + at), load(step + at)), inverse[r]));
            }
            store_int8(to, rounded);
            offsets[r] = dot_64(offsets[r], keys.offset + c, to);
        }
    }
    RowLanes centers, offset;
    for (int r = 0; r < R; ++r) centers[r] = splat(0.0f);
    for (int c = 0; c < keys.centered; c += lanes) {
        const F m = load(center + c);
        for (int r = 0; r < R; ++r) centers[r] = fma(load(queries + r * stride + c), m, centers[r]);
    }
    for (int r = 0; r < R; ++r) offset[r] = to_float(offsets[r]);
    alignas(64) float base_sum[lanes], offset_sum[lanes];
    store(base_sum, sum_rows(centers, R));
    store(offset_sum, mul(splat(0.5f), sum_rows(offset, R)));
    for (int r = 0; r < R; ++r) {
        out.scale[r] = factors.scale[r];
        out.base[r] = base_sum[r] + base[r];
        out.offset[r] = offset_sum[r];
    }
}

template <int R>
void fold_up_to(const float * queries, int64_t stride, int rows, const KeySteps & keys, const float * base, FoldedQueries * out) {
    if (rows == R) {
        const FactorScales factors = fold_scales<R>(queries, stride, keys);
        for (int g = 0; g < keys.groups; ++g) fold_group<R>(queries, stride, keys, g, factors, base, out[g]);
    } else if constexpr (R > 1) {
        fold_up_to<R - 1>(queries, stride, rows, keys, base, out);
    }
}

void fold_queries(const float * queries, int64_t stride, int rows, const KeySteps & keys, const float * base, FoldedQueries * out) {
    fold_up_to<row_block>(queries, stride, rows, keys, base, out);
}

// ---- softmax

INLINE F score_16(F x, float softcap, const float * bias, float slope) {
    if (softcap != 0.0f) x = mul(splat(softcap), tanh_16(x));
    if (!bias) return x;
    const F b = load(bias);
    return hidden_where(b, fma(splat(slope), b, x));
}

// A score of +infinity takes all the weight, several share it.
void only_infinities(float * scores) {
    for (int t = 0; t < page_tokens; ++t) {
        if (scores[t] == scores[t]) scores[t] = scores[t] == infinity ? 0.0f : -infinity;
    }
}

// Returns what weights are taken relative to; factor: for what was accumulated relative to the old reference.
INLINE float raise_reference(SoftmaxState & state, float largest, float & factor) {
    factor = 1.0f;
    if (largest == infinity) {
        if (state.reference != infinity) factor = 0.0f;
        state.reference = infinity;
    } else if (largest > state.reference + reference_slack) {
        factor = exp_weight(state.reference - largest);
        state.reference = largest;
    }
    return state.reference == -infinity || largest == infinity ? 0.0f : state.reference;
}

void softmax(const SoftmaxTile & tile) {
    RowLanes largest, sums;
    alignas(64) float most[lanes], total[lanes];
    for (int r = 0; r < tile.rows; ++r) {
        float * scores = tile.scores + r * page_tokens;
        const bool plain = tile.softcap == 0.0f && !tile.bias[r];
        F top = splat(-infinity);
        for (int t = 0; t < page_tokens; t += lanes) {
            F s = load(scores + t);
            if (!plain) {
                s = score_16(s, tile.softcap, tile.bias[r] ? tile.bias[r] + t : nullptr, tile.slopes[r]);
                store(scores + t, s);
            }
            top = larger(s, top);
        }
        largest[r] = top;
    }
    store(most, largest_of_rows(largest, tile.rows));
    for (int r = 0; r < tile.rows; ++r) {
        float * scores = tile.scores + r * page_tokens;
        if (most[r] == infinity) only_infinities(scores);
        const F reference = splat(raise_reference(tile.states[r], most[r], tile.factors[r]));
        F sum = splat(0.0f);
        for (int t = 0; t < page_tokens; t += lanes) {
            const F w = exp_16(sub(load(scores + t), reference));
            store(scores + t, w);
            sum = add(sum, w);
        }
        sums[r] = sum;
    }
    store(total, sum_rows(sums, tile.rows));
    for (int r = 0; r < tile.rows; ++r) {
        tile.states[r].sum = std::fma(tile.states[r].sum, tile.factors[r], total[r]);
    }
}

// One number a row, in column `column` of out.
INLINE void store_column(RowLanes & sums, int rows, int column, float (*out)[largest_groups]) {
    alignas(64) float total[lanes];
    store(total, sum_rows(sums, rows));
    for (int r = 0; r < rows; ++r) out[r][column] = total[r];
}

template <int Groups, bool Totals>
void pack_groups(const float * weights, int rows, const float * slot_scale, PackedWeights & out) {
    constexpr int vectors = page_tokens / lanes, size = vectors / Groups;
    const auto scaled = [&](int r, int i) __attribute__((always_inline)) {
        const F x = load(weights + r * page_tokens + i * lanes);
        return slot_scale ? mul(x, load(slot_scale + i * lanes)) : x;
    };
    RowLanes largest;
    for (int r = 0; r < rows; ++r) {
        F most = splat(0.0f);
        for (int i = 0; i < vectors; ++i) most = larger(scaled(r, i), most);
        largest[r] = most;
    }
    FactorScales factors;
    factors.set(largest_of_rows(largest, rows));
    RowLanes sums[Groups], totals[Groups];
    for (int r = 0; r < rows; ++r) {
        const F inverse = splat(factors.inverse[r]);
        out.scale[r] = factors.scale[r];
        F sum[Groups], total[Groups];
        for (int half = 0; half < vectors; half += 4) {
            I rounded[4];
            for (int i = 0; i < 4; ++i) {
                const int at = half + i, group = at / size;
                const F x = scaled(r, at);
                rounded[i] = round_to_int(mul(x, inverse));
                const F whole = to_float(rounded[i]);
                sum[group] = at % size == 0 ? whole : add(sum[group], whole);
                if (Totals) total[group] = at % size == 0 ? x : add(total[group], x);
            }
            store_int8(out.w + r * operand_bytes + half * lanes, rounded);
        }
        for (int g = 0; g < Groups; ++g) {
            sums[g][r] = sum[g];
            if (Totals) totals[g][r] = total[g];
        }
    }
    for (int g = 0; g < Groups; ++g) {
        store_column(sums[g], rows, g, out.sum);
        if (Totals) store_column(totals[g], rows, g, out.total);
    }
}

template <int Groups> void pack_up_to(const float * weights, int rows, const WeightRule & rule, PackedWeights & out) {
    if (rule.groups == Groups) {
        if (rule.totals) return pack_groups<Groups, true>(weights, rows, rule.slot_scale, out);
        return pack_groups<Groups, false>(weights, rows, rule.slot_scale, out);
    }
    if constexpr (Groups > 1) pack_up_to<Groups / 2>(weights, rows, rule, out);
}

void pack_weights(const float * weights, int rows, const WeightRule & rule, PackedWeights & out) {
    alignas(64) float gathered[row_block * page_tokens];
    if (rule.token) { // into slots
        for (int r = 0; r < rows; ++r) {
            for (int s = 0; s < page_tokens; ++s) gathered[r * page_tokens + s] = weights[r * page_tokens + rule.token[s]];
        }
        weights = gathered;
    }
    pack_up_to<largest_groups>(weights, rows, rule, out);
}

void scale(float * x, int n, float factor) {
    for (int i = 0; i < n; i += lanes) store(x + i, mul(load(x + i), splat(factor)));
}

void add_scaled(const float * x, float factor, int n, float * out) {
    for (int i = 0; i < n; i += lanes) store(out + i, fma(load(x + i), splat(factor), load(out + i)));
}

// ---- f16 rows

// 16 channels of a row, or the last 8 and zeros.
INLINE F channels_of(const uint16_t * row, int channel, int head_dim) {
    return channel + lanes <= head_dim ? halves_16(row + channel) : halves_8(row + channel);
}

// R query rows on T tokens at once, so that enough sums are in flight.
template <int R, int T> INLINE void dot_halves(const float * q, int64_t stride, const uint16_t * const * keys, int head_dim, F (*dots)[lanes]) {
    F sum[R][T];
    for (int r = 0; r < R; ++r) {
        for (int t = 0; t < T; ++t) sum[r][t] = splat(0.0f);
    }
    for (int c = 0; c < head_dim; c += lanes) {
        F k[T];
        for (int t = 0; t < T; ++t) k[t] = channels_of(keys[t], c, head_dim);
        for (int r = 0; r < R; ++r) {
            const F x = load(q + r * stride + c);
            for (int t = 0; t < T; ++t) sum[r][t] = fma(x, k[t], sum[r][t]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int t = 0; t < T; ++t) dots[r][t] = sum[r][t];
    }
}

template <int R> void score_halves_of(const float * q, int64_t stride, const HalfRows & keys, float * scores) {
    constexpr int T = R == 1 ? 8 : R <= 2 ? 4 : 2;
    for (int first = 0; first < keys.count; first += lanes) {
        const uint16_t * row[lanes]; // past the end: the last one once more
        for (int t = 0; t < lanes; ++t) {
            const int token = first + t < keys.count ? first + t : keys.count - 1;
            row[t] = keys.rows + token * keys.stride;
        }
        F dots[R][lanes];
        for (int t = 0; t < lanes; t += T) {
            F part[R][lanes];
            dot_halves<R, T>(q, stride, row + t, keys.head_dim, part);
            for (int r = 0; r < R; ++r) {
                for (int i = 0; i < T; ++i) dots[r][t + i] = part[r][i];
            }
        }
        for (int r = 0; r < R; ++r) store(scores + r * page_tokens + first, sum_of_16(dots[r]));
    }
}

template <int R> void score_halves_up_to(const float * q, int64_t stride, int rows, const HalfRows & keys, float * scores) {
    if (rows == R) return score_halves_of<R>(q, stride, keys, scores);
    if constexpr (R > 1) score_halves_up_to<R - 1>(q, stride, rows, keys, scores);
}

void score_halves(const float * queries, int64_t stride, int rows, const HalfRows & keys, float * scores) {
    score_halves_up_to<row_block>(queries, stride, rows, keys, scores);
}

// N vectors of channels of R rows, over all tokens. False if anything is infinite or not a number: then nothing is stored.
template <int R, int N>
bool add_halves_of(const float * weights, const HalfRows & values, int channel, float * out, int64_t out_stride) {
    F sum[R][N];
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < N; ++i) sum[r][i] = load(out + r * out_stride + channel + i * lanes);
    }
    const uint16_t * row = values.rows;
    for (int t = 0; t < values.count; ++t, row += values.stride) {
        F v[N];
        for (int i = 0; i < N; ++i) v[i] = channels_of(row, channel + i * lanes, values.head_dim);
        for (int r = 0; r < R; ++r) {
            const F w = splat(weights[r * page_tokens + t]);
            for (int i = 0; i < N; ++i) sum[r][i] = fma(w, v[i], sum[r][i]);
        }
    }
    F nothing = splat(0.0f); // stays 0 for finite sums
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < N; ++i) nothing = fma(sum[r][i], splat(0.0f), nothing);
    }
    if (!is_zero(nothing)) return false;
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < N; ++i) store(out + r * out_stride + channel + i * lanes, sum[r][i]);
    }
    return true;
}

// The same where something is not finite: cells of weight 0 are left out, row by row.
void add_halves_with_care(const float * weights, int rows, const HalfRows & values, int channel, float * out, int64_t out_stride) {
    for (int r = 0; r < rows; ++r) {
        F sum = load(out + r * out_stride + channel);
        for (int t = 0; t < values.count; ++t) {
            const float w = weights[r * page_tokens + t];
            if (w == 0.0f) continue;
            sum = fma(splat(w), channels_of(values.rows + t * values.stride, channel, values.head_dim), sum);
        }
        store(out + r * out_stride + channel, sum);
    }
}

template <int R> void add_halves_rows(const float * weights, const HalfRows & values, float * out, int64_t out_stride) {
    constexpr int N = R * 4 <= float_sums ? 4 : R * 2 <= float_sums ? 2 : 1;
    int c = 0;
    for (; c + N * lanes <= values.head_dim; c += N * lanes) {
        if (add_halves_of<R, N>(weights, values, c, out, out_stride)) continue;
        for (int i = 0; i < N; ++i) add_halves_with_care(weights, R, values, c + i * lanes, out, out_stride);
    }
    for (; c < values.head_dim; c += lanes) {
        if (add_halves_of<R, 1>(weights, values, c, out, out_stride)) continue;
        add_halves_with_care(weights, R, values, c, out, out_stride);
    }
}

template <int R> void add_halves_up_to(const float * weights, int rows, const HalfRows & values, float * out, int64_t out_stride) {
    if (rows == R) return add_halves_rows<R>(weights, values, out, out_stride);
    if constexpr (R > 1) add_halves_up_to<R - 1>(weights, rows, values, out, out_stride);
}

void add_halves(const float * weights, int rows, const HalfRows & values, float * out, int64_t out_stride) {
    add_halves_up_to<row_block>(weights, rows, values, out, out_stride);
}
