// Sums for instruction sets that add four products of bytes to an int32; see generic_product.h.
template <int R, int N>
INLINE void add_quads(Sum (&sum)[R][N], const uint8_t * levels, int64_t stride, int quads, int /*largest*/, const int8_t * factors) {
    for (int quad = 0; quad < quads; ++quad, levels += stride, factors += 4) {
        LevelVector u[N];
        unroll<N>([&](auto i) ALWAYS_INLINE { u[i] = load_levels(levels + 4 * product_lanes * i); });
        unroll<R>([&](auto r) ALWAYS_INLINE {
            const LevelVector x = splat_factors(factors + r * operand_bytes);
            unroll<N>([&](auto i) ALWAYS_INLINE { add_dot4(sum[r][i], u[i], x); });
        });
    }
}
