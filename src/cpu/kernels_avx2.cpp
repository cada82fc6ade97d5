// Only functions below the target pragma may use AVX2, and all of them are private to this file: a machine without AVX2
// runs the rest of the library, and the linker must not pick an AVX2 copy of anything shared.
#include "cpu/kernels_avx2.h"

#if defined(VIDKV_HAVE_AVX2)

#include <cmath>
#include <cstring>
#include <immintrin.h>

namespace vidkv {

bool avx2_supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace vidkv {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

inline __m256 load_halves(const void * halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i *>(halves)));
}

inline float half_at(const uint8_t * bytes, size_t index) {
    uint16_t half;
    std::memcpy(&half, bytes + 2 * index, 2);
    return _cvtsh_ss(half);
}

inline __m256i broadcast_word(const uint8_t * bytes) {
    int word;
    std::memcpy(&word, bytes, 4);
    return _mm256_set1_epi32(word);
}

inline __m256i widen_bytes(const uint8_t * bytes) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(bytes)));
}

inline float largest(__m256 x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

inline float total(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// ---- keys

inline const uint16_t * row_or_zeros(const uint16_t * rows, int64_t stride, int token, int count, int channel) {
    alignas(16) static const uint16_t zeros[8] = {};
    return token < count ? rows + token * stride + channel : zeros;
}

// 8 channels of 16 tokens, transposed while still in f16: token t + i in the low half of a register, t + 8 + i in the high.
void transpose_16_tokens(const uint16_t * rows, int64_t stride, int token, int count, int channel, int tokens,
                         float * tile) {
    __m256i r[8], s[8];
    for (int i = 0; i < 8; ++i) {
        const auto * low = reinterpret_cast<const __m128i *>(row_or_zeros(rows, stride, token + i, count, channel));
        const auto * high = reinterpret_cast<const __m128i *>(row_or_zeros(rows, stride, token + 8 + i, count, channel));
        r[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
    }
    for (int i = 0; i < 4; ++i) { // s: pairs of tokens
        s[2 * i] = _mm256_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
        s[2 * i + 1] = _mm256_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) { // r: quads of tokens
        for (int half = 0; half < 2; ++half) {
            r[4 * i + 2 * half] = _mm256_unpacklo_epi32(s[4 * i + half], s[4 * i + 2 + half]);
            r[4 * i + 2 * half + 1] = _mm256_unpackhi_epi32(s[4 * i + half], s[4 * i + 2 + half]);
        }
    }
    for (int pair = 0; pair < 4; ++pair) { // s: all eight tokens of one channel
        s[2 * pair] = _mm256_unpacklo_epi64(r[pair], r[4 + pair]);
        s[2 * pair + 1] = _mm256_unpackhi_epi64(r[pair], r[4 + pair]);
    }
    for (int c = 0; c < 8; ++c) {
        float * out = tile + static_cast<int64_t>(channel + c) * tokens + token;
        _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm256_castsi256_si128(s[c])));
        if (token + 8 < tokens) _mm256_storeu_ps(out + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(s[c], 1)));
    }
}

void open_keys(const uint16_t * rows, int64_t stride, int count, int head_dim, int tokens, float * tile) {
    for (int t = 0; t < tokens; t += 16) {
        for (int c = 0; c < head_dim; c += 8) transpose_16_tokens(rows, stride, t, count, c, tokens, tile);
    }
}

// ---- values

bool open_values(const uint16_t * rows, int64_t stride, int count, int head_dim, float * tile) {
    const __m256 zero = _mm256_setzero_ps();
    __m256 finite = _mm256_castsi256_ps(_mm256_set1_epi32(-1)); // 0 * x == 0 for every finite x
    for (int t = 0; t < count; ++t) {
        for (int c = 0; c < head_dim; c += 8, tile += 8) {
            const __m256 value = load_halves(rows + t * stride + c);
            finite = _mm256_and_ps(finite, _mm256_cmp_ps(_mm256_mul_ps(value, zero), zero, _CMP_EQ_OQ));
            _mm256_storeu_ps(tile, value);
        }
    }
    return _mm256_movemask_ps(finite) == 255;
}

// ---- mask and softmax

bool load_mask(const uint16_t * mask, int n, float * bias) {
    const __m256 hidden = _mm256_set1_ps(-infinity);
    int visible = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 value = load_halves(mask + i);
        visible |= _mm256_movemask_ps(_mm256_cmp_ps(value, hidden, _CMP_NEQ_UQ));
        _mm256_storeu_ps(bias + i, value);
    }
    for (; i < n; ++i) {
        bias[i] = _cvtsh_ss(mask[i]);
        visible |= bias[i] != -infinity;
    }
    return visible != 0;
}

// exp(x) for x <= 0; below -87.3 it is 0; not a number stays so. Taylor series to r^7 after taking out powers of two: the
// remainder at |r| <= ln(2)/2 is 5.2e-9, a tenth of a unit of rounding.
inline __m256 exp_not_positive(__m256 x) {
    const __m256 lowest = _mm256_set1_ps(-87.3f);
    const __m256 kept = _mm256_cmp_ps(x, lowest, _CMP_NLT_UQ);
    x = _mm256_max_ps(lowest, x);
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), nearest);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x); // ln 2 in two parts, the first of 15 bits
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(kept, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

// tanh(x) = (1 - e) / (1 + e) with e = exp(-2|x|), the sign put back.
inline __m256 hyperbolic_tangent(__m256 x) {
    const __m256 sign_bit = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
    const __m256 e = exp_not_positive(_mm256_mul_ps(_mm256_set1_ps(-2.0f), _mm256_andnot_ps(sign_bit, x)));
    const __m256 magnitude = _mm256_div_ps(_mm256_sub_ps(one, e), _mm256_add_ps(one, e));
    return _mm256_or_ps(magnitude, _mm256_and_ps(sign_bit, x));
}

inline __m256 score(__m256 dot, const ScoreRule & rule, const float * bias, float slope) {
    const __m256 hidden = _mm256_set1_ps(-infinity);
    __m256 s = _mm256_mul_ps(_mm256_set1_ps(rule.scale), dot);
    if (rule.softcap != 0.0f) s = _mm256_mul_ps(_mm256_set1_ps(rule.softcap), hyperbolic_tangent(s));
    if (!bias) return s;
    const __m256 b = _mm256_loadu_ps(bias);
    const __m256 biased = _mm256_fmadd_ps(_mm256_set1_ps(slope), b, s);
    return _mm256_blendv_ps(biased, hidden, _mm256_cmp_ps(b, hidden, _CMP_EQ_OQ));
}

// Nothing has been seen that has a weight: all hidden, or not a number.
float softmax_of_nothing(float * dots, int n, SoftmaxState & state) {
    for (int i = 0; i < n; ++i) {
        if (dots[i] != dots[i]) state.sum = std::numeric_limits<float>::quiet_NaN();
        dots[i] = 0.0f;
    }
    return 1.0f;
}

float softmax_step(float * dots, int n, const ScoreRule & rule, const float * bias, float slope, SoftmaxState & state) {
    const float old_maximum = state.maximum;
    __m256 top = _mm256_set1_ps(old_maximum);
    for (int i = 0; i < n; i += 8) {
        const __m256 s = score(_mm256_loadu_ps(dots + i), rule, bias ? bias + i : nullptr, slope);
        _mm256_storeu_ps(dots + i, s);
        top = _mm256_max_ps(s, top); // the second operand wins over what is not a number
    }
    state.maximum = largest(top);
    if (state.maximum == -infinity) return softmax_of_nothing(dots, n, state);
    const __m256 maximum = _mm256_set1_ps(state.maximum), one = _mm256_set1_ps(1.0f);
    __m256 sum = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) {
        const __m256 s = _mm256_loadu_ps(dots + i);
        const __m256 weight = exp_not_positive(_mm256_sub_ps(s, maximum));
        const __m256 exact =
            _mm256_blendv_ps(weight, one, _mm256_cmp_ps(s, maximum, _CMP_EQ_OQ)); // infinities at distance 0
        _mm256_storeu_ps(dots + i, exact);
        sum = _mm256_add_ps(sum, exact);
    }
    const float factor = old_maximum == state.maximum ? 1.0f : std::exp(old_maximum - state.maximum);
    state.sum = state.sum * factor + total(sum);
    return factor;
}

// ---- products

// R rows by V vectors of 8 columns, held in registers over the whole inner loop.
template <int R, int V> void multiply_tile(const Product & p, int row, int column) {
    __m256 sum[R][V];
    const float * a = p.a + row * p.a_stride;
    const float * m = p.m + column;
    float * out = p.out + row * p.out_stride + column;
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) sum[r][v] = _mm256_loadu_ps(out + r * p.out_stride + 8 * v);
    }
    for (int j = 0; j < p.inner; ++j, m += p.m_stride) {
        __m256 x[V];
        for (int v = 0; v < V; ++v) x[v] = _mm256_loadu_ps(m + 8 * v);
        for (int r = 0; r < R; ++r) {
            const __m256 factor = _mm256_broadcast_ss(a + r * p.a_stride + j);
            for (int v = 0; v < V; ++v) sum[r][v] = _mm256_fmadd_ps(factor, x[v], sum[r][v]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) _mm256_storeu_ps(out + r * p.out_stride + 8 * v, sum[r][v]);
    }
}

// All columns of R rows; few rows take more columns at once, so that enough sums are in flight.
template <int R> void multiply_rows(const Product & p, int row) {
    constexpr int wide = R <= 3 ? 4 : 2;
    int column = 0;
    for (; column + 8 * wide <= p.width; column += 8 * wide) multiply_tile<R, wide>(p, row, column);
    for (; column < p.width; column += 8) multiply_tile<R, 1>(p, row, column);
}

void multiply_add(const Product & p) {
    constexpr int most = 6; // 12 sums, 2 columns and 1 factor fill 15 of 16 registers
    for (int row = 0; row < p.rows;) {
        const int left = p.rows - row, parts = (left + most - 1) / most;
        const int rows = (left + parts - 1) / parts;
        switch (rows) {
        case 1:
            multiply_rows<1>(p, row);
            break;
        case 2:
            multiply_rows<2>(p, row);
            break;
        case 3:
            multiply_rows<3>(p, row);
            break;
        case 4:
            multiply_rows<4>(p, row);
            break;
        case 5:
            multiply_rows<5>(p, row);
            break;
        default:
            multiply_rows<6>(p, row);
            break;
        }
        row += rows;
    }
}

void scale(float * x, int n, float factor) {
    const __m256 f = _mm256_set1_ps(factor);
    for (int i = 0; i < n; i += 8) _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), f));
}

} // namespace

const Kernels avx2_kernels = {"avx2", open_keys, open_values,
                              load_mask, multiply_add, softmax_step,  scale};

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
