// Products of levels and int8 factors, for any instruction set: included inside the anonymous namespace of kernels_<isa>.cpp, which
// has defined P, product_lanes floats, Sum, as many int32, and add_quads, which adds `quads` quads of levels times factors to them:
// R rows of factors on N vectors of levels, exact. Sums stay in registers because the compiler sees every index as a constant
// (generic_unroll.h).

template <int R, int N> INLINE void clear_sums(Sum (&sum)[R][N]) {
    unroll<R * N>([&](auto k) ALWAYS_INLINE { clear(sum[k / N][k % N]); });
}

// Factors of row 0 for a quad; row r is r * operand_bytes on.
INLINE const int8_t * factors_of(const int8_t * q, int quad) {
    return q + quad / slab_quads * (row_block * operand_bytes) + quad % slab_quads * 4;
}

template <int R, int N> INLINE void store_scores(const KeyProduct & p, int row, int token, Sum (&sum)[R][N]) {
    if (p.soon) p.soon->worked(R * N * product_lanes);
    unroll<R>([&](auto r) ALWAYS_INLINE {
        const P offset = splat_p(p.folded->offset[row + r]), factor = splat_p(p.folded->scale[row + r]);
        const P base = splat_p(p.folded->base[row + r]);
        float * scores = p.scores + (row + r) * page_tokens + token;
        unroll<N>([&](auto i) ALWAYS_INLINE { store(scores + i * product_lanes, fma(sub(to_float(sum[r][i]), offset), factor, base)); });
    });
}

template <int R, int N> INLINE void add_sums(const ValueProduct & p, const ValueGroup & g, int row, int channel, Sum (&sum)[R][N]) {
    if (p.soon) p.soon->worked(R * N * product_lanes / p.groups);
    float * out = p.out + row * p.out_stride + channel;
    P step[N];
    unroll<N>([&](auto i) ALWAYS_INLINE { step[i] = g.step ? load_p(g.step + channel + i * product_lanes) : splat_p(1.0f); });
    unroll<R>([&](auto r) ALWAYS_INLINE {
        const P scale = splat_p(p.scale[row + r]), offset = splat_p(g.offset[row + r]);
        unroll<N>([&](auto i) ALWAYS_INLINE {
            float * at = out + r * p.out_stride + i * product_lanes;
            store(at, fma(step[i], fma(to_float(sum[r][i]), scale, offset), load_p(at)));
        });
    });
    if (!g.base) return;
    unroll<N>([&](auto i) ALWAYS_INLINE {
        const P base = load_p(g.base + channel + i * product_lanes);
        unroll<R>([&](auto r) ALWAYS_INLINE {
            float * at = out + r * p.out_stride + i * product_lanes;
            store(at, fma(base, splat_p(g.total[row + r]), load_p(at)));
        });
    });
}

template <int R, int N> __attribute__((noinline)) void score_tokens(const KeyProduct & p, int row, int token) {
    Sum sum[R][N];
    clear_sums(sum);
    for (const LevelRun * run = p.runs; run != p.runs + p.run_count; ++run) {
        for (int quad = run->first, end = quad + run->quads; quad < end;) {
            const int left = slab_quads - quad % slab_quads, n = end - quad < left ? end - quad : left;
            const uint8_t * levels = p.levels + (static_cast<int64_t>(quad) * page_tokens + token) * 4;
            add_quads(sum, levels, page_tokens * 4, n, run->largest, factors_of(p.folded->q, quad) + row * operand_bytes);
            quad += n;
        }
    }
    store_scores(p, row, token, sum);
}

template <int R, int N> __attribute__((noinline)) void add_channels(const ValueProduct & p, int row, int channel) {
    for (const ValueGroup * g = p.group; g != p.group + p.groups; ++g) {
        Sum sum[R][N];
        clear_sums(sum);
        for (const LevelRun * run = g->runs; run != g->runs + g->run_count; ++run) {
            const uint8_t * levels = p.levels + static_cast<int64_t>(run->first) * p.stride + channel * 4;
            add_quads(sum, levels, p.stride, run->quads, run->largest, p.weights + row * operand_bytes + 4 * run->first);
        }
        add_sums(p, *g, row, channel, sum);
    }
}

template <int R> void score_rows(const KeyProduct & p, int row) {
    constexpr int N = sums_wide<R>;
    int t = p.first_token, end = t + p.tokens;
    for (; t + N * product_lanes <= end; t += N * product_lanes) score_tokens<R, N>(p, row, t);
    for (; t < end; t += product_lanes) score_tokens<R, 1>(p, row, t);
}

template <int R> void add_rows(const ValueProduct & p, int row) {
    constexpr int N = sums_wide<R>;
    int c = 0;
    for (; c + N * product_lanes <= p.channels; c += N * product_lanes) add_channels<R, N>(p, row, c);
    for (; c < p.channels; c += product_lanes) add_channels<R, 1>(p, row, c);
}

template <int R> void score_up_to(const KeyProduct & p, int row, int rows) {
    if (rows == R) return score_rows<R>(p, row);
    if constexpr (R > 1) score_up_to<R - 1>(p, row, rows);
}
template <int R> void add_up_to(const ValueProduct & p, int row, int rows) {
    if (rows == R) return add_rows<R>(p, row);
    if constexpr (R > 1) add_up_to<R - 1>(p, row, rows);
}

// Rows are shared out evenly among as few passes as the registers allow.
template <class Pass> INLINE void in_passes(int rows, Pass pass) {
    for (int row = 0; row < rows;) {
        const int left = rows - row, passes = (left + most_rows - 1) / most_rows, n = (left + passes - 1) / passes;
        pass(row, n);
        row += n;
    }
}

void score_levels(const KeyProduct & p) {
    in_passes(p.rows, [&](int row, int rows) { score_up_to<most_rows>(p, row, rows); });
}
void add_levels(const ValueProduct & p) {
    in_passes(p.rows, [&](int row, int rows) { add_up_to<most_rows>(p, row, rows); });
}
