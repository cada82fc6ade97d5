// EncoderLoops for AVX-512: the search holds all costs and tables of the trellis in registers.
#include "codec/encoder_loops_x86.h"

#if VIDKV_HAVE_ENCODER_LOOPS_X86

#include <immintrin.h>

#include <array>
#include <cstring>

namespace vidkv {

bool avx512_encoder_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wuninitialized" // GCC 12 sees it in its own intrinsics (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif

#define VIDKV_VECTOR_BYTES 64
#include "codec/encoder_loops.inc"
#include "codec/viterbi_costs.h"

namespace vidkv {

namespace {

struct Numbers {
    alignas(64) uint16_t at[32];
};
// The sample's level of state 32 r + l, as a number among the 16 costs of a step.
constexpr std::array<Numbers, 8> cost_numbers(const TrellisTable & table) {
    std::array<Numbers, 8> numbers{};
    for (int s = 0; s < states; ++s) numbers[s / 32].at[s % 32] = static_cast<uint16_t>((s & 15) ^ table.mix[s >> 4]);
    return numbers;
}
// Which of 32 parents the states 32 r + l come from; r: of the 2^bits registers that they reach.
constexpr std::array<Numbers, 8> spread_numbers(int bits) {
    std::array<Numbers, 8> numbers{};
    for (int s = 0; s < states; ++s) numbers[s / 32].at[s % 32] = static_cast<uint16_t>((s >> bits) % 32);
    return numbers;
}

// 32 states a register, in their order.
template <int Table> class Steps {
    static constexpr const TrellisTable & table = trellis_tables[Table];
    static constexpr int bits = table.bits, branches = 1 << bits, parents = states >> bits, bests = parents / 32;
    static constexpr std::array<Numbers, 8> which = cost_numbers(table), spread = spread_numbers(bits);
    static constexpr TrellisPoints points[2] = {trellis_points(table, 0), trellis_points(table, 1)};

  public:
    Steps(int steps, const float * x) : steps_(steps), x_(x) {}

    static constexpr int came_bytes = bits == 1 ? parents / 8 : parents;
    static int branch_of(const uint8_t * came, int parent) {
        if constexpr (bits == 1) return came[parent / 8] >> (parent % 8) & 1;
        return came[parent];
    }

    // edge: the costs before step `first`, become those after `count` steps.
    void go(int first, int count, int16_t * edge, uint8_t * came) const {
        constexpr int until_lowered = bits == 1 ? 8 : 4; // steps; costs stay below 2^15 as codec/viterbi_costs.h says
        __m512i cost[8];
        std::memcpy(cost, edge, sizeof(cost));
        for (int i = 0; i < count; ++i) {
            const __m512i now = costs(first + i);
            __m512i m[bests];
#pragma GCC unroll 4
            for (int o = 0; o < bests; ++o) m[o] = best(cost, o, came + i * came_bytes);
#pragma GCC unroll 8
            for (int r = 0; r < 8; ++r)
                cost[r] = _mm512_add_epi16(_mm512_permutexvar_epi16(load(spread[r % branches]), m[r / branches]),
                                           _mm512_permutexvar_epi16(load(which[r]), now));
            if (i % until_lowered != until_lowered - 1) continue;
            const __m512i some = _mm512_broadcastw_epi16(_mm512_castsi512_si128(cost[0]));
#pragma GCC unroll 8
            for (int r = 0; r < 8; ++r) cost[r] = _mm512_sub_epi16(cost[r], some);
        }
        std::memcpy(edge, cost, sizeof(cost));
    }

  private:
    __m512i costs(int i) const { // below twice the steps: the ring goes round
        i -= i < steps_ ? 0 : steps_;
        const float * x = x_ + 2 * i * table.samples;
        __m256i sum = _mm256_setzero_si256();
        for (int v = 0; v < table.samples; ++v) {
            const float unit = x[2 * v + 1] * static_cast<float>(cost_unit(table));
            if (unit == 0.0f) continue;
            const __m512 d = _mm512_sub_ps(_mm512_set1_ps(x[2 * v]), _mm512_loadu_ps(points[v].at));
            const __m512 cost =
                _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(d, d), _mm512_set1_ps(unit)), _mm512_set1_ps(0.5f));
            const __m512 held = _mm512_min_ps(cost, _mm512_set1_ps(static_cast<float>(max_cost))); // NaN: the most
            sum = _mm256_add_epi16(sum, _mm512_cvtepi32_epi16(_mm512_cvttps_epi32(held)));
        }
        return _mm512_castsi256_si512(sum);
    }

    // The cheaper of two, the first of equal ones.
    struct Least {
        __m512i cost, branch;
    };
    static Least less(const Least & a, const Least & b) {
        const __mmask32 second = _mm512_cmplt_epi16_mask(b.cost, a.cost);
        return {_mm512_min_epi16(a.cost, b.cost), _mm512_mask_mov_epi16(a.branch, second, b.branch)};
    }
    template <int First, int Count> static Least least(const __m512i * cost) {
        if constexpr (Count == 1)
            return {cost[First * bests], _mm512_set1_epi16(First)};
        else
            return less(least<First, Count / 2>(cost), least<First + Count / 2, Count / 2>(cost));
    }

    static __m512i best(const __m512i * cost, int o, uint8_t * came) {
        if constexpr (bits == 1) {
            const __m512i a = cost[o], b = cost[o + bests];
            const uint32_t second = _cvtmask32_u32(_mm512_cmplt_epi16_mask(b, a));
            std::memcpy(came + 4 * o, &second, 4);
            return _mm512_min_epi16(a, b);
        } else {
            const Least found = least<0, branches>(cost + o);
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(came + 32 * o), _mm512_cvtepi16_epi8(found.branch));
            return found.cost;
        }
    }
    static __m512i load(const Numbers & numbers) { return _mm512_load_si512(numbers.at); }

    const int steps_;
    const float * x_;
};

#include "codec/encoder_search.inc"

} // namespace

const EncoderLoops avx512_encoder_loops = make_loops("avx512", search);

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
