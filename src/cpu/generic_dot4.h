// Sums for instruction sets that add four products of bytes to an int32; see generic_product.h.
template <int R, int N> class Sums {
  public:
    INLINE Sums() {
        for (int r = 0; r < R; ++r) {
            for (int i = 0; i < N; ++i) clear(sum_[r][i]);
        }
    }
    INLINE void add_quads(const uint8_t * levels, int64_t stride, int quads, int /*largest*/, const int8_t * factors) {
        IntVector sum[R][N]; // compilers keep these in registers, but not always members
        for (int r = 0; r < R; ++r) {
            for (int i = 0; i < N; ++i) sum[r][i] = sum_[r][i];
        }
        for (int quad = 0; quad < quads; ++quad, levels += stride, factors += 4) {
            LevelVector u[N];
            for (int i = 0; i < N; ++i) u[i] = load_levels(levels + 4 * product_lanes * i);
            for (int r = 0; r < R; ++r) {
                const LevelVector x = splat_factors(factors + r * operand_bytes);
                for (int i = 0; i < N; ++i) add_dot4(sum[r][i], u[i], x);
            }
        }
        for (int r = 0; r < R; ++r) {
            for (int i = 0; i < N; ++i) sum_[r][i] = sum[r][i];
        }
    }
    INLINE P get(int r, int i) const { return to_float(sum_[r][i]); }

  private:
    IntVector sum_[R][N];
};
