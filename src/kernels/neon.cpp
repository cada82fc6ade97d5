// Only functions below the target pragma may use the dot product extension, and all of them are private to this file.
#include "kernels/neon.h"

#if defined(VIDKV_HAVE_NEON)

#include <arm_neon.h>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "base/softmax_math.h"
#include "base/bytes.h"
#include "base/half.h"
#include "codec/log_scale.h"
#include "codec/trellis.h"
#include "codec/trit.h"
#include "kernels/quad_order.h"

namespace vidkv {

bool neon_supported() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1; // HWCAP_ASIMDDP
#else
    return true; // every 64-bit Apple processor but the first ones
#endif
}

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#define INLINE inline __attribute__((always_inline))

namespace vidkv {

namespace {

#include "kernels/generic/unroll.inc"

// ---- 16 floats in four registers

using P = float32x4_t; // products go by 4
INLINE P load_p(const float * p) { return vld1q_f32(p); }
INLINE P splat_p(float x) { return vdupq_n_f32(x); }
INLINE void store(float * p, P x) { vst1q_f32(p, x); }
INLINE P add(P a, P b) { return vaddq_f32(a, b); }
INLINE P sub(P a, P b) { return vsubq_f32(a, b); }
INLINE P mul(P a, P b) { return vmulq_f32(a, b); }
INLINE P divide(P a, P b) { return vdivq_f32(a, b); }
INLINE P fma(P a, P b, P c) { return vfmaq_f32(c, a, b); }
INLINE P fma_less(P a, P b, P c) { return vfmaq_f32(vnegq_f32(c), a, b); }
INLINE P larger(P a, P b) { return vbslq_f32(vcgtq_f32(a, b), a, b); } // b if a is not a number
INLINE P larger_magnitude(P a, P b) { return larger(vabsq_f32(a), b); }
INLINE P with_sign_of(P x, P sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, x); }
INLINE P kept_where(uint32x4_t mask, P x) { return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(x))); }
INLINE P hidden_where(P bias, P x) {
    const P hidden = splat_p(-std::numeric_limits<float>::infinity());
    return vbslq_f32(vceqq_f32(bias, hidden), hidden, x);
}
// p * 2^n, n in the low bits of `shifted`; 0 where x is below lowest.
INLINE P times_power_or_zero(P p, P shifted, P x, float lowest) {
    const int32x4_t power = vaddq_s32(vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23), vdupq_n_s32(0x3f800000));
    return kept_where(vmvnq_u32(vcltq_f32(x, splat_p(lowest))), mul(p, vreinterpretq_f32_s32(power)));
}
INLINE P halves_p(const void * p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<const uint16_t *>(p)))); }

struct F {
    P v[4];
};
struct I {
    int32x4_t v[4];
};

INLINE F load(const float * p) { return {{load_p(p), load_p(p + 4), load_p(p + 8), load_p(p + 12)}}; }
INLINE void store(float * p, F x) {
    for (int i = 0; i < 4; ++i) store(p + 4 * i, x.v[i]);
}
INLINE F load_once(const float * p) { return load(p); }
INLINE F splat(float x) { return {{splat_p(x), splat_p(x), splat_p(x), splat_p(x)}}; }

#define VIDKV_BINARY(NAME)                                                                                                 \
    INLINE F NAME(F a, F b) {                                                                                              \
        return {{NAME(a.v[0], b.v[0]), NAME(a.v[1], b.v[1]), NAME(a.v[2], b.v[2]), NAME(a.v[3], b.v[3])}};                 \
    }
VIDKV_BINARY(add)
VIDKV_BINARY(sub)
VIDKV_BINARY(mul)
VIDKV_BINARY(divide)
VIDKV_BINARY(larger)
VIDKV_BINARY(larger_magnitude)
VIDKV_BINARY(with_sign_of)
VIDKV_BINARY(hidden_where)

#define VIDKV_TERNARY(NAME)                                                                                                \
    INLINE F NAME(F a, F b, F c) {                                                                                         \
        F out;                                                                                                             \
        for (int i = 0; i < 4; ++i) out.v[i] = NAME(a.v[i], b.v[i], c.v[i]);                                               \
        return out;                                                                                                        \
    }
VIDKV_TERNARY(fma)
VIDKV_TERNARY(fma_less)

INLINE F absolute(F x) {
    for (P & part : x.v) part = vabsq_f32(part);
    return x;
}
INLINE F times_power_or_zero(F p, F shifted, F x, float lowest) {
    for (int i = 0; i < 4; ++i) p.v[i] = times_power_or_zero(p.v[i], shifted.v[i], x.v[i], lowest);
    return p;
}
// Lanes i and i + Half change places, for all i whose bit Half is 0.
template <int Half> INLINE F swapped(F x) {
    if constexpr (Half == 1) return {{vrev64q_f32(x.v[0]), vrev64q_f32(x.v[1]), vrev64q_f32(x.v[2]), vrev64q_f32(x.v[3])}};
    if constexpr (Half == 2)
        return {{vextq_f32(x.v[0], x.v[0], 2), vextq_f32(x.v[1], x.v[1], 2), vextq_f32(x.v[2], x.v[2], 2),
                 vextq_f32(x.v[3], x.v[3], 2)}};
    if constexpr (Half == 4) return {{x.v[1], x.v[0], x.v[3], x.v[2]}};
    return {{x.v[2], x.v[3], x.v[0], x.v[1]}};
}
INLINE bool is_zero(F x) {
    uint32x4_t zero = vceqzq_f32(x.v[0]);
    for (int i = 1; i < 4; ++i) zero = vandq_u32(zero, vceqzq_f32(x.v[i]));
    return vminvq_u32(zero) != 0;
}
INLINE F halves_8(const void * p) {
    const char * bytes = static_cast<const char *>(p);
    return {{halves_p(bytes), halves_p(bytes + 8), splat_p(0.0f), splat_p(0.0f)}};
}
INLINE F halves_16(const void * p) {
    const char * bytes = static_cast<const char *>(p);
    return {{halves_p(bytes), halves_p(bytes + 8), halves_p(bytes + 16), halves_p(bytes + 24)}};
}
INLINE void store_8(float * p, F x) {
    store(p, x.v[0]);
    store(p + 4, x.v[1]);
}
INLINE F log_scales_16(const uint8_t * codes) {
    float value[16];
    for (int i = 0; i < 16; ++i) value[i] = log_scale_value(codes[i]);
    return load(value);
}

INLINE F signed_bytes_16(const uint8_t * p) {
    float value[16];
    for (int i = 0; i < 16; ++i) value[i] = static_cast<float>(static_cast<int8_t>(p[i]));
    return load(value);
}

// What the mask elements so far have been: all -inf, all 0, or anything.
class MaskBits {
  public:
    INLINE MaskBits() : any_(vdupq_n_u16(0)), shown_(any_) {}
    INLINE void add(const uint16_t * mask) {
        for (int i = 0; i < 16; i += 8) {
            const uint16x8_t m = vld1q_u16(mask + i);
            any_ = vorrq_u16(any_, m);
            shown_ = vorrq_u16(shown_, veorq_u16(m, vdupq_n_u16(0xfc00)));
        }
    }
    INLINE bool all_zero() const { return vmaxvq_u16(any_) == 0; }
    INLINE bool all_hidden() const { return vmaxvq_u16(shown_) == 0; }

  private:
    uint16x8_t any_, shown_;
};

struct Add {
    static INLINE P of(P a, P b) { return add(a, b); }
};
struct Larger {
    static INLINE P of(P a, P b) { return larger(a, b); }
};

// Lane i of the result is the fold of x[i]: lanes j and j + 8 are folded, then j and j + 4, and so on.
template <class Fold> INLINE P fold_4(const F * x) {
    P four[4], two[2];
    for (int i = 0; i < 4; ++i) four[i] = Fold::of(Fold::of(x[i].v[0], x[i].v[2]), Fold::of(x[i].v[1], x[i].v[3]));
    for (int i = 0; i < 2; ++i) {
        const P a = four[2 * i], b = four[2 * i + 1];
        two[i] = Fold::of(vcombine_f32(vget_low_f32(a), vget_low_f32(b)), vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
    }
    return Fold::of(vuzp1q_f32(two[0], two[1]), vuzp2q_f32(two[0], two[1]));
}
INLINE F sum_of_16(const F * x) { return {{fold_4<Add>(x), fold_4<Add>(x + 4), fold_4<Add>(x + 8), fold_4<Add>(x + 12)}}; }
INLINE F sum_of_8(const F * x) { return {{fold_4<Add>(x), fold_4<Add>(x + 4), splat_p(0.0f), splat_p(0.0f)}}; }
INLINE F largest_of_8(const F * x) { return {{fold_4<Larger>(x), fold_4<Larger>(x + 4), splat_p(0.0f), splat_p(0.0f)}}; }

// ---- 16 int32

INLINE I no_ints() { return {{vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}}; }
INLINE P to_float(int32x4_t x) { return vcvtq_f32_s32(x); }
INLINE F to_float(I x) { return {{to_float(x.v[0]), to_float(x.v[1]), to_float(x.v[2]), to_float(x.v[3])}}; }
// The low byte of each lane.
INLINE I low_bytes(const F (&x)[4]) {
    const auto narrow = [](P part) ALWAYS_INLINE { return vmovn_s32(vreinterpretq_s32_f32(part)); };
    I bytes;
    for (int i = 0; i < 4; ++i) {
        const int16x8_t low = vcombine_s16(narrow(x[i].v[0]), narrow(x[i].v[1]));
        const int16x8_t high = vcombine_s16(narrow(x[i].v[2]), narrow(x[i].v[3]));
        bytes.v[i] = vreinterpretq_s32_s8(vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
    return bytes;
}
INLINE void store_bytes(int8_t * p, I x) {
    for (int i = 0; i < 4; ++i) vst1q_s8(p + 16 * i, vreinterpretq_s8_s32(x.v[i]));
}

// ---- products: levels are at most 63, so they are int8 as well

constexpr int product_lanes = 4;
constexpr int most_rows = row_block;
template <int R> constexpr int sums_wide = R <= 4 ? 4 : 2;
constexpr int float_sums = 5; // sums of F that fit into registers

using Sum = int32x4_t;
using LevelVector = int8x16_t;
INLINE void clear(Sum & x) { x = vdupq_n_s32(0); }
INLINE LevelVector load_levels(const uint8_t * p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
INLINE LevelVector splat_factors(const int8_t * p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
INLINE void add_dot4(int32x4_t & sum, LevelVector levels, LevelVector factors) { sum = vdotq_s32(sum, levels, factors); }
INLINE I dot_64(I sum, const uint8_t * levels, I factors) {
    for (int i = 0; i < 4; ++i) add_dot4(sum.v[i], load_levels(levels + 16 * i), vreinterpretq_s8_s32(factors.v[i]));
    return sum;
}

// ---- bytes: see generic/unpack.inc

struct Bytes16 {
    using V = uint8x16_t;
    static constexpr int quads = 1, span = 16;

    static INLINE V load(const uint8_t * p, int) { return vld1q_u8(p); }
    static INLINE void store(uint8_t * p, int, V v) { vst1q_u8(p, v); }
    static INLINE V pick(V table, V index) { return vqtbl1q_u8(table, index); }
    template <int Shift> static INLINE V down(V v) {
        if constexpr (Shift == 0)
            return v;
        else
            return vshrq_n_u8(v, Shift);
    }
    template <int Shift, int Bits> static INLINE V field(V v) {
        return vandq_u8(down<Shift>(v), vdupq_n_u8((1 << Bits) - 1));
    }
    template <int Bits> static INLINE V join(V high, V low) { return vorrq_u8(vshlq_n_u8(high, Bits), low); }
    // Four bits from bit Shift of a on; next: the byte after a.
    template <int Shift> static INLINE V window(V a, V next) {
        if constexpr (Shift <= 4)
            return field<Shift, 4>(a);
        else
            return vorrq_u8(down<Shift>(a), vandq_u8(vshlq_n_u8(next, 8 - Shift), vdupq_n_u8(15)));
    }
    // The four bytes after each of a's; behind the last ones come the first of the ring.
    static INLINE V following(V a, V first) { return vextq_u8(a, first, 4); }
    static INLINE V trit(V x) { // 3 x / 256: 1 from 86 on, 2 from 171 on
        return vsubq_u8(vsubq_u8(vdupq_n_u8(0), vcgeq_u8(x, vdupq_n_u8(86))), vcgeq_u8(x, vdupq_n_u8(171)));
    }
    static INLINE V times_3(V x) { return vaddq_u8(x, vaddq_u8(x, x)); }
    struct Levels {
        V mix, values[2];
        static INLINE Levels of(const TrellisTable & table) {
            return {vld1q_u8(table.mix.data()), {vld1q_u8(table.values[0].data()), vld1q_u8(table.values[1].data())}};
        }
        INLINE V index(V low, V high) const { return veorq_u8(low, pick(mix, high)); }
    };
};

#include "kernels/generic/dot4.inc"
#include "kernels/generic/float.inc"
#include "kernels/generic/softmax.inc"
#include "kernels/generic/halves.inc"
#include "kernels/generic/sums.inc"
#include "kernels/generic/product.inc"
#include "kernels/generic/unpack.inc"

void unpack_quads(QuadCode code, const uint8_t * packed, int rows, int quads, int stride, uint8_t * levels) {
    unpack_quads_by<Bytes16>(code, packed, rows, quads, stride, levels);
}
void unpack_ternary(const uint8_t * packed, int bytes, uint8_t * levels) {
    unpack_ternary_by<Bytes16>(packed, bytes, levels);
}

} // namespace

const Kernels neon_kernels = {
    "neon",    unpack_quads,       unpack_ternary, load_halves,  load_log_scales, load_key_scales, load_grid,
    load_mask, sort_quads_plainly, fold_queries,   score_levels, nullptr,         score_halves,    softmax,
    weigh,     pack_weights,       add_levels,     nullptr,      add_halves,      scale,           add_scaled,
    hadamard};

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
