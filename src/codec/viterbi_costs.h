// What every search for the cheapest path through a trellis has in common (codec/viterbi.h). Included by one file per instruction
// set, each compiled for it.
#pragma once

#include <cstdint>

#include "codec/encoder_loops.h"

namespace vidkv {

namespace {

constexpr int states = trellis_states;

// Costs are 16-bit: a step costs at most max_cost per sample, and 8 bits of steps (the spread between states) plus as many until
// the costs are brought down again stay below 2^15.
constexpr int max_cost = 1792, forbidden = 16000;
constexpr int cost_unit(const TrellisTable & table) { return table.bits == 1 ? 64 : table.samples == 2 ? 96 : 128; }

// Steps before the seam that decide with which state the ring closes. At 3 bits per level they decide whether packed values are found
// again.
constexpr int warm_up_of(const TrellisTable & table, int steps) {
    const int wanted = table.samples == 2 ? 12 : table.bits == 2 ? 16 : longest_warm_up;
    return wanted < steps ? wanted : steps;
}

// What the levels of sample v stand for.
struct TrellisPoints {
    float at[16];
};
constexpr TrellisPoints trellis_points(const TrellisTable & table, int v) {
    TrellisPoints points{};
    for (int s = 0; s < 16; ++s) points.at[s] = (static_cast<float>(table.values[v][s]) - 7.5f) * table.step;
    return points;
}

// Only states whose low bits are `seam` may precede the first step; -1: all.
[[maybe_unused]] void start_costs(int16_t * cost, int seam, int parents) {
    for (int s = 0; s < states; ++s) cost[s] = seam < 0 || s % parents == seam ? 0 : forbidden;
}

// Of all states, or of those with these low bits (-1: all); of equal ones the lowest.
[[maybe_unused]] int cheapest_state(const int16_t * cost, int seam, int parents) {
    const int step = seam < 0 ? 1 : parents;
    int best = seam < 0 ? 0 : seam;
    for (int s = best + step; s < states; s += step) {
        if (cost[s] < cost[best]) best = s;
    }
    return best;
}

} // namespace

} // namespace vidkv
