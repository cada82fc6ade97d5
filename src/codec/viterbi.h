// The search for the cheapest path through a trellis (Viterbi), 16 states side by side in GNU vectors: the specification, which the
// searches for one instruction set must equal path for path.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "codec/trellis.h"
#include "codec/viterbi_costs.h"

namespace vidkv {

namespace {

typedef int16_t Lanes __attribute__((vector_size(32))); // 16 states side by side
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef float Points __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

Lanes all_lanes(int x) { return Lanes{} + static_cast<int16_t>(x); }

// Lane l of the result is e[l ^ X].
template <int X> Lanes exchange(Lanes e) {
    return __builtin_shufflevector(e, e, 0 ^ X, 1 ^ X, 2 ^ X, 3 ^ X, 4 ^ X, 5 ^ X, 6 ^ X, 7 ^ X, 8 ^ X, 9 ^ X, 10 ^ X,
                                   11 ^ X, 12 ^ X, 13 ^ X, 14 ^ X, 15 ^ X);
}

// Lane l of the result is m[l / 2^Bits + Part * 16 / 2^Bits].
template <int Bits, int Part> Lanes spread(Lanes m) {
    constexpr int f = Part * (16 >> Bits), b = Bits;
    return __builtin_shufflevector(m, m, f, f + (1 >> b), f + (2 >> b), f + (3 >> b), f + (4 >> b), f + (5 >> b),
                                   f + (6 >> b), f + (7 >> b), f + (8 >> b), f + (9 >> b), f + (10 >> b), f + (11 >> b),
                                   f + (12 >> b), f + (13 >> b), f + (14 >> b), f + (15 >> b));
}

// The cost of the cheapest path to each state, and the predecessor on it.
template <int Bits> struct Viterbi {
    static constexpr int branches = 1 << Bits, parents = states >> Bits;
    Lanes cost[states / 16];

    void start(int seam) {
        alignas(32) int16_t c[states];
        start_costs(c, seam, parents);
        std::memcpy(cost, c, sizeof(c));
    }

    // costs: [16][16] of this step: row x is the cost of lane l ^ x. came: [parents], the high bits of the best predecessor.
    void step(const Lanes * costs, const uint8_t * mix, uint8_t * came) {
        Lanes best[parents / 16];
        for (int o = 0; o < parents / 16; ++o) {
            Lanes m = cost[o], from{};
            for (int b = 1; b < branches; ++b) {
                const Lanes other = cost[b * parents / 16 + o];
                const Lanes less = other < m;
                m = less ? other : m;
                from = less ? all_lanes(b) : from;
            }
            best[o] = m;
            const Bytes packed = __builtin_convertvector(from, Bytes);
            std::memcpy(came + 16 * o, &packed, 16);
        }
        reach<0>(best, costs, mix);
    }

    template <int Block> void reach(const Lanes * best, const Lanes * costs, const uint8_t * mix) {
        cost[Block] = spread<Bits, Block % branches>(best[Block / branches]) + costs[mix[Block]];
        if constexpr (Block + 1 < states / 16) reach<Block + 1>(best, costs, mix);
    }

    void normalize() {
        Lanes m = cost[0];
        for (const Lanes & c : cost) m = c < m ? c : m;
        int16_t least = m[0];
        for (int l = 1; l < 16; ++l) least = std::min<int16_t>(least, m[l]);
        for (Lanes & c : cost) c -= all_lanes(least);
    }

    int best_state(int seam) const {
        alignas(32) int16_t c[states];
        std::memcpy(c, cost, sizeof(c));
        return cheapest_state(c, seam, parents);
    }
};

// A lane's samples in coding order, which runs through the ring backwards: coding step i is ring step steps - 1 - i.
class Samples {
  public:
    // x: [steps][samples] pairs of a sample and its weight, 0 where there is no row.
    Samples(const TrellisTable & table, int steps, const float * x)
        : mix(table.mix.data()), count(steps), warm_up(warm_up_of(table, steps)), table_(table), x_(x) {
        for (int v = 0; v < table.samples; ++v) {
            for (int s = 0; s < 16; ++s) points_[v][s] = trellis_points(table, v).at[s];
        }
    }

    const uint8_t * mix;
    int count, warm_up;

    // Costs of all states at coding step i (which may exceed the number of steps: the ring goes round), for Viterbi::step.
    void costs(int i, Lanes * out) const {
        const float * x = x_ + 2 * (i % count * table_.samples);
        out[0] = Lanes{};
        for (int v = 0; v < table_.samples; ++v) {
            const float unit = x[2 * v + 1] * static_cast<float>(cost_unit(table_));
            if (unit == 0.0f) continue;
            const Points d = x[2 * v] - points_[v], cost = d * d * unit + 0.5f,
                         most = Points{} + static_cast<float>(max_cost);
            out[0] += __builtin_convertvector(__builtin_convertvector(cost < most ? cost : most, Ints), Lanes);
        }
        out[1] = exchange<1>(out[0]);
        for (int s = 0; s < 2; ++s) out[2 + s] = exchange<2>(out[s]);
        for (int s = 0; s < 4; ++s) out[4 + s] = exchange<4>(out[s]);
        for (int s = 0; s < 8; ++s) out[8 + s] = exchange<8>(out[s]);
    }

  private:
    const TrellisTable & table_;
    const float * x_;
    Points points_[2];
};

// The cheapest path over coding steps first .. first + count - 1.
template <int Bits>
void find_path(const Samples & samples, int first, int count, int seam, uint8_t * came, uint8_t * path) {
    using Search = Viterbi<Bits>;
    Search search;
    search.start(seam);
    Lanes costs[16];
    for (int i = 0; i < count; ++i) {
        samples.costs(first + i, costs);
        search.step(costs, samples.mix, came + i * Search::parents);
        if (i % (8 / Bits) == 8 / Bits - 1) search.normalize();
    }
    int state = search.best_state(seam);
    for (int i = count - 1; i >= 0; --i) {
        path[i] = static_cast<uint8_t>(state);
        const int parent = state >> Bits;
        state = parent + came[i * Search::parents + parent] * Search::parents;
    }
}

template <int Bits> void close_ring(const Samples & samples, int seam, uint8_t * came, uint8_t * path) {
    const int before = samples.warm_up, steps = samples.count;
    if (seam < 0) {
        find_path<Bits>(samples, steps - before, 2 * before, -1, came, path);
        seam = path[before - 1] % Viterbi<Bits>::parents;
    }
    find_path<Bits>(samples, 0, steps, seam, came, path);
}

void search_trellis(const TrellisTable & table, int steps, const float * x, int seam, uint8_t * came, uint8_t * path) {
    const Samples samples(table, steps, x);
    if (table.bits == 1) return close_ring<1>(samples, seam, came, path);
    if (table.bits == 2) return close_ring<2>(samples, seam, came, path);
    close_ring<3>(samples, seam, came, path);
}

} // namespace

} // namespace vidkv
