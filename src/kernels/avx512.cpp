// Only functions below the target pragma may use AVX-512, and all of them are private to this file: a machine without it runs
// the rest of the library, and the linker must not pick an AVX-512 copy of anything shared.
#include "kernels/avx512.h"

#if defined(VIDKV_HAVE_AVX512)

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

bool avx512_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute push(                                                                                              \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,fma,f16c,avx2"))),                     \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wuninitialized" // GCC 12 sees it in its own intrinsics (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,fma,f16c,avx2")
#endif

#define INLINE inline __attribute__((always_inline))
#define VIDKV_BYTES_64

namespace vidkv {

namespace {

#include "kernels/generic/unroll.inc"

// ---- 16 floats

using F = __m512;
using I = __m512i;

INLINE F load(const float * p) { return _mm512_loadu_ps(p); }
INLINE void store(float * p, F x) { _mm512_storeu_ps(p, x); }
INLINE F splat(float x) { return _mm512_set1_ps(x); }
INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
INLINE F divide(F a, F b) { return _mm512_div_ps(a, b); }
INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
INLINE F larger(F a, F b) { return _mm512_max_ps(a, b); } // b if a is not a number
INLINE F absolute(F x) { return _mm512_abs_ps(x); }
INLINE F with_sign_of(F x, F sign) { return _mm512_or_ps(x, _mm512_and_ps(sign, splat(-0.0f))); }
INLINE F hidden_where(F bias, F x) {
    const F hidden = splat(-std::numeric_limits<float>::infinity());
    return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(bias, hidden, _CMP_EQ_OQ), hidden);
}
INLINE F fma_less(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
INLINE F larger_magnitude(F a, F b) { return _mm512_range_ps(a, b, 0x0b); } // both positive; b if a is not a number
INLINE F where_above(F x, float limit, F y) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, splat(limit), _CMP_GT_OQ), y);
}
// p * 2^whole, 0 where x is below lowest. `shifted` has whole in its low bits.
INLINE F times_power_or_zero(F p, F /*shifted*/, F whole, F x, float lowest) {
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, splat(lowest), _CMP_NLT_UQ), p, whole);
}
INLINE bool is_zero(F x) { return _mm512_cmp_ps_mask(x, splat(0.0f), _CMP_NEQ_UQ) == 0; }

INLINE F halves_16(const void * p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i *>(p))); }
INLINE F halves_8(const void * p) {
    return _mm512_cvtph_ps(_mm256_zextsi128_si256(_mm_loadu_si128(static_cast<const __m128i *>(p))));
}
INLINE void store_8(float * p, F x) { _mm256_storeu_ps(p, _mm512_castps512_ps256(x)); }

INLINE F log_scales_16(const uint8_t * codes) {
    const F mantissas = _mm512_broadcast_f32x8(_mm256_loadu_ps(log_scale_mantissa));
    const I u = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(codes)));
    const F mantissa = _mm512_permutexvar_ps(_mm512_and_si512(u, _mm512_set1_epi32(7)), mantissas);
    const I exponent = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_srli_epi32(u, 3), _mm512_set1_epi32(16)), 23);
    return _mm512_castsi512_ps(
        _mm512_maskz_add_epi32(_mm512_test_epi32_mask(u, u), _mm512_castps_si512(mantissa), exponent));
}

INLINE F signed_bytes_16(const uint8_t * p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
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
    static INLINE F of(F a, F b) { return add(a, b); }
};
struct Larger {
    static INLINE F of(F a, F b) { return larger(a, b); }
};

// Lane i of the result is the fold of x[i]: lanes j and j + 8 are folded, then j and j + 4, and so on.
template <class Fold> INLINE F fold_16(const F * x) {
    F eight[8], four[4], two[2];
    for (int i = 0; i < 8; ++i) { // x[e + 8 h] and x[e + 8 h + 4] side by side, h in the low bit of i
        const F a = x[i / 2 + i % 2 * 8], b = x[i / 2 + i % 2 * 8 + 4];
        eight[i] = Fold::of(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    for (int i = 0; i < 4; ++i) {
        const F a = eight[2 * i], b = eight[2 * i + 1];
        four[i] = Fold::of(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    for (int i = 0; i < 2; ++i) {
        const F a = four[2 * i], b = four[2 * i + 1];
        two[i] = Fold::of(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
    return Fold::of(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xdd));
}
// The same for 8: lanes 0 to 7 of the result.
template <class Fold> INLINE F fold_8(const F * x) {
    F eight[4], four[2];
    for (int i = 0; i < 4; ++i) { // even ones, then odd ones
        const F a = x[i / 2 + i % 2 * 4], b = x[i / 2 + i % 2 * 4 + 2];
        eight[i] = Fold::of(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    for (int i = 0; i < 2; ++i) {
        const F a = eight[2 * i], b = eight[2 * i + 1];
        four[i] = Fold::of(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    const F two = Fold::of(_mm512_shuffle_ps(four[0], four[1], 0x44), _mm512_shuffle_ps(four[0], four[1], 0xee));
    const F one = Fold::of(_mm512_shuffle_ps(two, two, 0x88), _mm512_shuffle_ps(two, two, 0xdd));
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13), one);
}
INLINE F sum_of_16(const F * x) { return fold_16<Add>(x); }
INLINE F sum_of_8(const F * x) { return fold_8<Add>(x); }
INLINE F largest_of_8(const F * x) { return fold_8<Larger>(x); }

// ---- 16 int32

INLINE I no_ints() { return _mm512_setzero_si512(); }
INLINE F to_float(I x) { return _mm512_cvtepi32_ps(x); }
INLINE I round_to_int(F x) { return _mm512_cvtps_epi32(x); }
INLINE void store_int8(int8_t * p, const I * x) {
    const I packed = _mm512_packs_epi16(_mm512_packs_epi32(x[0], x[1]), _mm512_packs_epi32(x[2], x[3]));
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, packed));
}

INLINE I dot_64(I sum, const uint8_t * levels, const int8_t * factors) {
    return _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(levels), _mm512_loadu_si512(factors));
}

// ---- products

using P = F;
constexpr int product_lanes = 16;
constexpr int most_rows = row_block;
// Vectors that go with R rows: sums must cover the latency of dot4 and leave registers for the rest.
template <int R> constexpr int sums_wide = R <= 4 ? 4 : 2;

using Sum = I;
using LevelVector = __m512i;
INLINE void clear(Sum & x) { x = _mm512_setzero_si512(); }
INLINE P load_p(const float * p) { return load(p); }
INLINE P splat_p(float x) { return splat(x); }
INLINE LevelVector load_levels(const uint8_t * p) { return _mm512_loadu_si512(p); }
INLINE LevelVector splat_factors(const int8_t * p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
// GCC 12 copies every sum twice per round when it may choose the registers.
INLINE void add_dot4(I & sum, LevelVector levels, LevelVector factors) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(levels), "v"(factors));
}

constexpr int float_sums = 28; // sums of F that fit into registers

// ---- bytes

#include "kernels/bytes_x86.inc"

template <int Quads> struct Bytes64 : Operations64 {
    static constexpr int quads = Quads, span = 64 / Quads;

    static INLINE V load(const uint8_t * p, int quad) {
        if constexpr (Quads == 1) return _mm512_loadu_si512(p);
        if constexpr (Quads == 2) {
            return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))),
                                      _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + quad)), 1);
        }
        V v = _mm512_castsi128_si512(load_16(p));
        v = _mm512_inserti32x4(v, load_16(p + quad), 1);
        v = _mm512_inserti32x4(v, load_16(p + 2 * quad), 2);
        return _mm512_inserti32x4(v, load_16(p + 3 * quad), 3);
    }
    static INLINE void store(uint8_t * p, int stride, V v) {
        if constexpr (Quads == 1) _mm512_storeu_si512(p, v);
        if constexpr (Quads == 2) {
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_castsi512_si256(v));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(p + stride), _mm512_extracti64x4_epi64(v, 1));
        }
        if constexpr (Quads == 4) {
            store_16(p, _mm512_castsi512_si128(v));
            store_16(p + stride, _mm512_extracti32x4_epi32(v, 1));
            store_16(p + 2 * stride, _mm512_extracti32x4_epi32(v, 2));
            store_16(p + 3 * stride, _mm512_extracti32x4_epi32(v, 3));
        }
    }
    // Four vectors whose parts of a quad lie side by side.
    static INLINE void store_neighbours(uint8_t * p, int stride, const V (&v)[4]) {
        if constexpr (Quads == 2) {
            unroll<2>([&](auto i) ALWAYS_INLINE {
                _mm512_storeu_si512(p + 64 * i, _mm512_shuffle_i64x2(v[2 * i], v[2 * i + 1], 0x44));
                _mm512_storeu_si512(p + stride + 64 * i, _mm512_shuffle_i64x2(v[2 * i], v[2 * i + 1], 0xee));
            });
        }
        if constexpr (Quads == 4) {
            const V low[2] = {_mm512_shuffle_i64x2(v[0], v[1], 0x44),
                              _mm512_shuffle_i64x2(v[2], v[3], 0x44)}; // quads 0 and 1
            const V high[2] = {_mm512_shuffle_i64x2(v[0], v[1], 0xee), _mm512_shuffle_i64x2(v[2], v[3], 0xee)};
            _mm512_storeu_si512(p, _mm512_shuffle_i64x2(low[0], low[1], 0x88));
            _mm512_storeu_si512(p + stride, _mm512_shuffle_i64x2(low[0], low[1], 0xdd));
            _mm512_storeu_si512(p + 2 * stride, _mm512_shuffle_i64x2(high[0], high[1], 0x88));
            _mm512_storeu_si512(p + 3 * stride, _mm512_shuffle_i64x2(high[0], high[1], 0xdd));
        }
    }
    // The four bytes after each of a's; behind the last ones come the first of the ring.
    static INLINE V following(V a, V first) {
        if constexpr (Quads == 1) return _mm512_alignr_epi32(first, a, 1);
        if constexpr (Quads == 2) {
            return _mm512_permutexvar_epi32(_mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15, 8), a);
        }
        return _mm512_shuffle_epi32(a, _MM_PERM_ADCB);
    }
};

#include "kernels/generic/dot4.inc"
#include "kernels/generic/float.inc"
#include "kernels/generic/sums.inc"
#include "kernels/generic/product.inc"
#include "kernels/generic/unpack.inc"
#include "kernels/avx512_decode.inc"

void unpack_quads(QuadCode code, const uint8_t * packed, int rows, int quads, int stride, uint8_t * levels) {
    unpack_quads_by<Bytes64<1>, Bytes64<2>, Bytes64<4>, Bytes32<1>, Bytes16>(code, packed, rows, quads, stride, levels);
}
void unpack_ternary(const uint8_t * packed, int bytes, uint8_t * levels) {
    unpack_ternary_by<Bytes64<1>>(packed, bytes, levels);
}

} // namespace

const Kernels avx512_kernels = {"avx512",     unpack_quads, unpack_ternary, load_halves, load_log_scales, load_key_scales,
                                load_mask,    fold_queries, score_levels,   score_codes, score_halves,    softmax,
                                pack_weights, add_levels,   add_codes,      add_halves,  scale,           add_scaled};

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
