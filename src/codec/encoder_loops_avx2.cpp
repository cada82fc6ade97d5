// EncoderLoops for AVX2.
#include "codec/encoder_loops_x86.h"

#if VIDKV_HAVE_ENCODER_LOOPS_X86

#include <immintrin.h>

#include <cstring>

namespace vidkv {

bool avx2_encoder_supported() { return __builtin_cpu_supports("avx2"); }

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wuninitialized" // GCC 12 sees it in its own intrinsics (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx2")
#endif

#define VIDKV_VECTOR_BYTES 32
#include "codec/encoder_loops.inc"
#include "codec/viterbi_costs.h"

namespace vidkv {

namespace {

// 16 states a register, in their order.
template <int Table> class Steps {
    static constexpr const TrellisTable & table = trellis_tables[Table];
    static constexpr int bits = table.bits, branches = 1 << bits, parents = states >> bits, bests = parents / 16;
    static constexpr TrellisPoints points[2] = {trellis_points(table, 0), trellis_points(table, 1)};

  public:
    Steps(int steps, const float * x) : steps_(steps), x_(x) {}

    static constexpr int came_bytes = parents;
    static int branch_of(const uint8_t * came, int parent) { return came[parent]; }

    // edge: the costs before step `first`, become those after `count` steps.
    void go(int first, int count, int16_t * edge, uint8_t * came) const {
        constexpr int until_lowered = bits == 1 ? 8 : 4; // steps; costs stay below 2^15 as codec/viterbi_costs.h says
        __m256i cost[16], rows[16], best[bests];
        std::memcpy(cost, edge, sizeof(cost));
        for (int i = 0; i < count; ++i) {
            costs(first + i, rows);
#pragma GCC unroll 4
            for (int o = 0; o < bests; o += 2) {
                const Least low = least<0, branches>(cost + o), high = least<0, branches>(cost + o + 1);
                best[o] = low.cost;
                best[o + 1] = high.cost;
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(came + i * parents + 16 * o),
                                    _mm256_permute4x64_epi64(_mm256_packus_epi16(low.branch, high.branch), 0xd8));
            }
            reach<0>(best, rows, cost);
            if (i % until_lowered != until_lowered - 1) continue;
            const __m256i some = _mm256_broadcastw_epi16(_mm256_castsi256_si128(cost[0]));
#pragma GCC unroll 16
            for (int r = 0; r < 16; ++r) cost[r] = _mm256_sub_epi16(cost[r], some);
        }
        std::memcpy(edge, cost, sizeof(cost));
    }

  private:
    static __m256i costs_of_eight(__m256 x, const float * at, float unit) {
        const __m256 d = _mm256_sub_ps(x, _mm256_loadu_ps(at));
        const __m256 cost = _mm256_add_ps(_mm256_mul_ps(_mm256_mul_ps(d, d), _mm256_set1_ps(unit)), _mm256_set1_ps(0.5f));
        const __m256 held = _mm256_min_ps(cost, _mm256_set1_ps(static_cast<float>(max_cost))); // NaN: the most
        return _mm256_cvttps_epi32(held);
    }

    // rows[x]: the costs of states l ^ x, l = 0 .. 15.
    void costs(int i, __m256i * rows) const { // i below twice the steps: the ring goes round
        i -= i < steps_ ? 0 : steps_;
        const float * x = x_ + 2 * i * table.samples;
        __m256i sum = _mm256_setzero_si256();
        for (int v = 0; v < table.samples; ++v) {
            const float unit = x[2 * v + 1] * static_cast<float>(cost_unit(table));
            if (unit == 0.0f) continue;
            const __m256 sample = _mm256_set1_ps(x[2 * v]);
            const __m256i low = costs_of_eight(sample, points[v].at, unit),
                          high = costs_of_eight(sample, points[v].at + 8, unit);
            sum = _mm256_add_epi16(sum, _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
        }
        const __m256i swap_pairs = _mm256_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2, 13, 12, 15, 14, 9,
                                                   8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2);
        rows[0] = sum;
        rows[1] = _mm256_shuffle_epi8(rows[0], swap_pairs);
#pragma GCC unroll 2
        for (int r = 0; r < 2; ++r) rows[2 + r] = _mm256_shuffle_epi32(rows[r], 0xb1);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) rows[4 + r] = _mm256_shuffle_epi32(rows[r], 0x4e);
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) rows[8 + r] = _mm256_permute4x64_epi64(rows[r], 0x4e);
    }

    // The cheaper of two, the first of equal ones.
    struct Least {
        __m256i cost, branch;
    };
    template <int First, int Count> static Least least(const __m256i * cost) {
        if constexpr (Count == 1) {
            return {cost[First * bests], _mm256_set1_epi16(First)};
        } else {
            const Least a = least<First, Count / 2>(cost), b = least<First + Count / 2, Count / 2>(cost);
            const __m256i second = _mm256_cmpgt_epi16(a.cost, b.cost);
            return {_mm256_min_epi16(a.cost, b.cost), _mm256_blendv_epi8(a.branch, b.branch, second)};
        }
    }

    // Lane l of register r of those that 16 parents reach: parent (16 r + l) >> bits.
    template <int R> static __m256i spread(__m256i parents_of) {
        constexpr int from = R * (16 >> bits); // the first parent
        const __m256i half = _mm256_permute4x64_epi64(parents_of, from / 8 ? 0xee : 0x44);
        constexpr auto number = [](int l) { return static_cast<char>(2 * (from % 8 + (l >> bits))); };
        constexpr auto next = [](char c) { return static_cast<char>(c + 1); };
        const __m256i which = _mm256_setr_epi8(
            number(0), next(number(0)), number(1), next(number(1)), number(2), next(number(2)), number(3), next(number(3)),
            number(4), next(number(4)), number(5), next(number(5)), number(6), next(number(6)), number(7), next(number(7)),
            number(8), next(number(8)), number(9), next(number(9)), number(10), next(number(10)), number(11),
            next(number(11)), number(12), next(number(12)), number(13), next(number(13)), number(14), next(number(14)),
            number(15), next(number(15)));
        return _mm256_shuffle_epi8(half, which);
    }

    template <int Block> static void reach(const __m256i * best, const __m256i * rows, __m256i * cost) {
        cost[Block] = _mm256_add_epi16(spread<Block % branches>(best[Block / branches]), rows[table.mix[Block]]);
        if constexpr (Block + 1 < 16) reach<Block + 1>(best, rows, cost);
    }

    const int steps_;
    const float * x_;
};

#include "codec/encoder_search.inc"

} // namespace

const EncoderLoops avx2_encoder_loops = make_loops("avx2", search);

} // namespace vidkv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
