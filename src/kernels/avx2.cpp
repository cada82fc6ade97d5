// Only functions below the target pragma may use AVX2, and all of them are private to this file: a machine without AVX2
// runs the rest of the library, and the linker must not pick an AVX2 copy of anything shared.
#include "kernels/avx2.h"

#if defined(VIDKV_HAVE_AVX2)

#include <cmath>
#include <cstring>
#include <immintrin.h>
#include <utility>

#include "base/softmax_math.h"
#include "base/bytes.h"
#include "base/half.h"
#include "codec/log_scale.h"
#include "codec/trellis.h"
#include "codec/trit.h"

namespace vidkv {

// Every processor with AVX2 converts half floats (F16C); not every compiler knows how to ask.
bool avx2_supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define INLINE inline __attribute__((always_inline))

namespace vidkv {

namespace {

#include "kernels/generic/unroll.inc"

// ---- 16 floats in two registers

struct F {
    __m256 low, high;
};
struct I {
    __m256i low, high;
};

using P = __m256; // products go by 8
INLINE P load_p(const float * p) { return _mm256_loadu_ps(p); }
INLINE P splat_p(float x) { return _mm256_set1_ps(x); }
INLINE void store(float * p, P x) { _mm256_storeu_ps(p, x); }
INLINE P add(P a, P b) { return _mm256_add_ps(a, b); }
INLINE P sub(P a, P b) { return _mm256_sub_ps(a, b); }
INLINE P fma(P a, P b, P c) { return _mm256_fmadd_ps(a, b, c); }

INLINE F load(const float * p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void store(float * p, F x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}
INLINE F splat(float x) { return {splat_p(x), splat_p(x)}; }
INLINE F add(F a, F b) { return {add(a.low, b.low), add(a.high, b.high)}; }
INLINE F sub(F a, F b) { return {sub(a.low, b.low), sub(a.high, b.high)}; }
INLINE F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
INLINE F divide(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
INLINE F fma(F a, F b, F c) { return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)}; }
INLINE F larger(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; } // b if a is not a number
INLINE F both(F a, F b) { return {_mm256_and_ps(a.low, b.low), _mm256_and_ps(a.high, b.high)}; }
INLINE F absolute(F x) { return {_mm256_andnot_ps(splat_p(-0.0f), x.low), _mm256_andnot_ps(splat_p(-0.0f), x.high)}; }
INLINE F with_sign_of(F x, F sign) {
    const F bit = both(sign, splat(-0.0f));
    return {_mm256_or_ps(x.low, bit.low), _mm256_or_ps(x.high, bit.high)};
}
INLINE P hidden_where(P bias, P x) {
    const P hidden = splat_p(-std::numeric_limits<float>::infinity());
    return _mm256_blendv_ps(x, hidden, _mm256_cmp_ps(bias, hidden, _CMP_EQ_OQ));
}
INLINE F hidden_where(F bias, F x) { return {hidden_where(bias.low, x.low), hidden_where(bias.high, x.high)}; }
INLINE F fma_less(F a, F b, F c) { return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)}; }
INLINE F larger_magnitude(F a, F b) { return larger(absolute(a), b); } // b if a is not a number
INLINE F where_above(F x, float limit, F y) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.low, splat_p(limit), _CMP_GT_OQ), y.low),
            _mm256_and_ps(_mm256_cmp_ps(x.high, splat_p(limit), _CMP_GT_OQ), y.high)};
}
// p * 2^n, n in the low bits of `shifted`; 0 where x is below lowest.
INLINE P times_power_or_zero(P p, P shifted, P x, float lowest) {
    const __m256i power =
        _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23), _mm256_set1_epi32(0x3f800000));
    return _mm256_and_ps(_mm256_cmp_ps(x, splat_p(lowest), _CMP_NLT_UQ), _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}
INLINE F times_power_or_zero(F p, F shifted, F /*whole*/, F x, float lowest) {
    return {times_power_or_zero(p.low, shifted.low, x.low, lowest),
            times_power_or_zero(p.high, shifted.high, x.high, lowest)};
}
INLINE bool is_zero(F x) {
    const P zero = splat_p(0.0f);
    return _mm256_movemask_ps(
               _mm256_and_ps(_mm256_cmp_ps(x.low, zero, _CMP_EQ_OQ), _mm256_cmp_ps(x.high, zero, _CMP_EQ_OQ))) == 255;
}

INLINE P halves_p(const void * p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i *>(p))); }
INLINE F halves_16(const void * p) { return {halves_p(p), halves_p(static_cast<const char *>(p) + 16)}; }
INLINE F halves_8(const void * p) { return {halves_p(p), splat_p(0.0f)}; }
INLINE void store_8(float * p, F x) { _mm256_storeu_ps(p, x.low); }

INLINE P log_scales_8(const uint8_t * codes) {
    const __m256i u = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(codes)));
    const P mantissa = _mm256_permutevar8x32_ps(_mm256_loadu_ps(log_scale_mantissa), u); // looks at the low three bits
    const __m256i exponent = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_srli_epi32(u, 3), _mm256_set1_epi32(16)), 23);
    const __m256i value = _mm256_add_epi32(_mm256_castps_si256(mantissa), exponent);
    return _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_cmpeq_epi32(u, _mm256_setzero_si256()), value));
}
INLINE F log_scales_16(const uint8_t * codes) { return {log_scales_8(codes), log_scales_8(codes + 8)}; }

INLINE F signed_bytes_16(const uint8_t * p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

// What the mask elements so far have been: all -inf, all 0, or anything.
class MaskBits {
  public:
    INLINE MaskBits() : any_(_mm256_setzero_si256()), shown_(any_) {}
    INLINE void add(const uint16_t * mask) {
        const __m256i m = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(mask));
        any_ = _mm256_or_si256(any_, m);
        shown_ = _mm256_or_si256(shown_, _mm256_xor_si256(m, _mm256_set1_epi16(static_cast<short>(0xfc00))));
    }
    INLINE bool all_zero() const { return _mm256_testz_si256(any_, any_); }
    INLINE bool all_hidden() const { return _mm256_testz_si256(shown_, shown_); }

  private:
    __m256i any_, shown_;
};

struct Add {
    static INLINE P of(P a, P b) { return add(a, b); }
};
struct Larger {
    static INLINE P of(P a, P b) { return _mm256_max_ps(a, b); }
};

// Lane i of the result is the fold of x[i]: lanes j and j + 8 are folded, then j and j + 4, and so on.
template <class Fold> INLINE P fold_8(const F * x) {
    P four[4], two[2];
    for (int i = 0; i < 4; ++i) {
        const F &l = x[i], &h = x[i + 4];
        const P a = Fold::of(l.low, l.high), b = Fold::of(h.low, h.high);
        four[i] = Fold::of(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    for (int i = 0; i < 2; ++i) {
        const P a = four[2 * i], b = four[2 * i + 1];
        two[i] = Fold::of(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    }
    return Fold::of(_mm256_shuffle_ps(two[0], two[1], 0x88), _mm256_shuffle_ps(two[0], two[1], 0xdd));
}
INLINE F sum_of_16(const F * x) { return {fold_8<Add>(x), fold_8<Add>(x + 8)}; }
INLINE F sum_of_8(const F * x) { return {fold_8<Add>(x), splat_p(0.0f)}; }
INLINE F largest_of_8(const F * x) { return {fold_8<Larger>(x), splat_p(0.0f)}; }

// ---- 16 int32

INLINE P to_float(__m256i x) { return _mm256_cvtepi32_ps(x); }
INLINE F to_float(I x) { return {to_float(x.low), to_float(x.high)}; }
INLINE I round_to_int(F x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
INLINE void store_int8(int8_t * p, const I * x) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < 2; ++i) {
        const __m256i a = _mm256_packs_epi32(x[2 * i].low, x[2 * i].high),
                      b = _mm256_packs_epi32(x[2 * i + 1].low, x[2 * i + 1].high);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p + 32 * i),
                            _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order));
    }
}

INLINE I no_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
// Levels of at most 63: pairs of products stay in int16.
INLINE __m256i dot_32(__m256i sum, const uint8_t * levels, const int8_t * factors) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(levels)),
                                               _mm256_loadu_si256(reinterpret_cast<const __m256i *>(factors)));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INLINE I dot_64(I sum, const uint8_t * levels, const int8_t * factors) {
    return {dot_32(sum.low, levels, factors), dot_32(sum.high, levels + 32, factors + 32)};
}

// ---- products

constexpr int product_lanes = 8;
constexpr int most_rows = 4; // with two vectors of levels: 8 sums, 2 levels, 1 factor and 1 product
template <int R> constexpr int sums_wide = R <= 2 ? 4 : 2;
constexpr int float_sums = 6; // sums of F that fit into registers

// sum += x in int16. GCC 12 spills some sums and copies the others when it may choose the registers.
INLINE void add_in_place(__m256i & sum, __m256i x) { asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(x)); }

using Sum = __m256i;
template <int R, int N> INLINE void clear_sums(Sum (&sum)[R][N]);
INLINE void clear(Sum & x) { x = _mm256_setzero_si256(); }

// Products of bytes are added in int16, as many quads as cannot overflow, then in int32.
template <int R, int N>
INLINE void add_quads(Sum (&sum)[R][N], const uint8_t * levels, int64_t stride, int quads, int largest,
                      const int8_t * factors) {
    const int safe = 32767 / (2 * 127 * largest);
    const __m256i one = _mm256_set1_epi16(1);
    while (quads > 0) {
        const int n = quads < safe ? quads : safe;
        __m256i part[R][N];
        clear_sums(part);
        for (int quad = 0; quad < n; ++quad, levels += stride, factors += 4) {
            __m256i u[N];
            unroll<N>([&](auto i)
                          ALWAYS_INLINE { u[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(levels + 32 * i)); });
            unroll<R>([&](auto r) ALWAYS_INLINE {
                int32_t four;
                std::memcpy(&four, factors + r * operand_bytes, 4);
                const __m256i x = _mm256_set1_epi32(four);
                unroll<N>([&](auto i) ALWAYS_INLINE { add_in_place(part[r][i], _mm256_maddubs_epi16(u[i], x)); });
            });
        }
        unroll<R * N>([&](auto k) ALWAYS_INLINE {
            Sum & to = sum[k / N][k % N];
            to = _mm256_add_epi32(to, _mm256_madd_epi16(part[k / N][k % N], one));
            asm("" : "+m"(to)); // in memory, so that the parts have the registers
        });
        quads -= n;
    }
}

#include "kernels/bytes_x86.inc"
#include "kernels/generic/float.inc"
#include "kernels/generic/sums.inc"
#include "kernels/generic/product.inc"
#include "kernels/generic/unpack.inc"

void unpack_quads(QuadCode code, const uint8_t * packed, int rows, int quads, int stride, uint8_t * levels) {
    unpack_quads_by<Bytes32<1>, Bytes32<2>, Bytes16>(code, packed, rows, quads, stride, levels);
}
void unpack_ternary(const uint8_t * packed, int bytes, uint8_t * levels) {
    unpack_ternary_by<Bytes32<1>>(packed, bytes, levels);
}

} // namespace

const Kernels avx2_kernels = {"avx2",       unpack_quads, unpack_ternary, load_halves, load_log_scales, load_key_scales,
                              load_mask,    fold_queries, score_levels,   nullptr,     score_halves,    softmax,
                              pack_weights, add_levels,   nullptr,        add_halves,  scale,           add_scaled};

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
