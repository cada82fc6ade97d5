// Sums for instruction sets that add four products of bytes to an int32; see generic_product.h.
template <int R, int N> class Sums {
  public:
    INLINE Sums() {
        for (int r = 0; r < R; ++r) {
            for (int i = 0; i < N; ++i) clear(sum_[r][i]);
        }
    }
    INLINE void add_quads(const uint8_t * levels, int64_t stride, int quads, int /*largest*/, const int8_t * factors) {
        for (int quad = 0; quad < quads; ++quad, levels += stride, factors += 4) {
            LevelVector u[N];
            for (int i = 0; i < N; ++i) u[i] = load_levels(levels + 4 * product_lanes * i);
            for (int r = 0; r < R; ++r) {
                const LevelVector x = splat_factors(factors + r * operand_bytes);
                for (int i = 0; i < N; ++i) sum_[r][i] = dot4(sum_[r][i], u[i], x);
            }
        }
    }
    INLINE P get(int r, int i) const { return to_float(sum_[r][i]); }

  private:
    IntVector sum_[R][N];
};
