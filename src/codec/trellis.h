// Trellis-coded quantization with an 8-bit state (a bitshift trellis, tail-biting) and a code that two 16-entry tables make.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "codec/quad.h"

namespace vidkv {

// A state s yields the level values[v][(s & 15) ^ mix[s >> 4]] for sample v of its step: every step has `samples` samples and
// takes `bits` new bits into the state. Tables were fitted to Gaussian samples (docs/format.md, "Trellis tables").
struct TrellisTable {
    int bits, samples;
    float step; // levels l stand for (l - 7.5) * step
    std::array<uint8_t, 16> mix;
    std::array<std::array<uint8_t, 16>, 2> values;

    constexpr uint8_t level(int sample, uint8_t state) const { return values[sample][(state & 15) ^ mix[state >> 4]]; }
};

inline constexpr TrellisTable trellis_tables[] = {
    // bits, samples, step, mix, values
    {1,
     1,
     0.40f,
     {7, 10, 0, 5, 14, 14, 11, 14, 12, 8, 5, 2, 11, 15, 1, 4},
     {{{3, 8, 6, 9, 7, 12, 6, 9, 5, 9, 5, 10, 7, 10, 6, 8}, {}}}},
    {3,
     2,
     0.30f,
     {0, 5, 10, 15, 4, 9, 14, 3, 8, 13, 2, 7, 12, 1, 6, 11},
     {{{5, 8, 5, 8, 8, 2, 5, 6, 9, 9, 11, 11, 14, 12, 2, 6}, {6, 5, 3, 1, 9, 10, 10, 13, 6, 10, 13, 8, 8, 4, 6, 8}}}},
    {2,
     1,
     0.40f,
     {7, 10, 0, 5, 14, 14, 11, 14, 12, 8, 5, 2, 11, 15, 1, 4},
     {{{2, 6, 8, 10, 5, 7, 9, 11, 4, 6, 8, 13, 5, 7, 10, 8}, {}}}},
    {3,
     1,
     0.35f,
     {0, 5, 10, 15, 4, 9, 14, 3, 8, 13, 2, 7, 12, 1, 6, 11},
     {{{1, 4, 6, 6, 9, 10, 7, 11, 3, 5, 7, 8, 8, 9, 12, 14}, {}}}},
};

// code: one of the trellis codes.
constexpr const TrellisTable & trellis_table(QuadCode code) {
    switch (code) {
    case QuadCode::trellis1: return trellis_tables[0];
    case QuadCode::trellis1_5: return trellis_tables[1];
    case QuadCode::trellis2: return trellis_tables[2];
    default: return trellis_tables[3];
    }
}

// How the states of a lane lie in the bytes of a quad. The bits of a lane are a ring; the state of step t is the 8 bits from bit
// bits * t on. A lane has n words of `planes` bytes (1, or 3 where 3 bits per step do not divide 8); byte p of word j of lane i is
// at p * 4 n + 4 j + i, and a word holds `per_word` steps. Step t = j * per_word + u, sample v is row (u * samples + v) * n + j,
// so neighbouring rows come from neighbouring bytes.
struct TrellisRing {
    int bits, samples, planes, per_word, n, steps;

    TrellisRing(const TrellisTable & table, int rows)
        : bits(table.bits), samples(table.samples), planes(bits == 3 ? 3 : 1), per_word(8 * planes / bits),
          n((rows + per_word * samples - 1) / (per_word * samples)), steps(n * per_word) {}

    size_t bytes() const { return static_cast<size_t>(4 * planes * n); }
    int row(int step, int sample) const { return (step % per_word * samples + sample) * n + step / per_word; }
    // Where byte `index` of a lane's ring is; index may go round several times.
    size_t at(int lane, int index) const {
        const int byte = index % (planes * n);
        return static_cast<size_t>(byte % planes * 4 * n + byte / planes * 4 + lane);
    }
    uint8_t state(const uint8_t * packed, int lane, int step) const {
        const int bit = step * bits;
        const unsigned low = packed[at(lane, bit / 8)], high = packed[at(lane, bit / 8 + 1)];
        return static_cast<uint8_t>((low | high << 8) >> (bit % 8));
    }
};

// Finds the bits for one lane of a quad: x [rows] in units of the scale (about unit variance), finite. Writes the lane's bytes
// of `packed` and its levels [rows]. weight: [rows], what a squared error costs, up to about 4; null: 1. keep_seam: the ring is closed
// where the lane's present code is, which saves looking for the place.
void encode_trellis_lane(QuadCode code, const float * x, int rows, int lane, uint8_t * packed, uint8_t * levels,
                         const float * weight = nullptr, bool keep_seam = false);

// Finds bits for one lane that give exactly these levels [rows], as rows that were coded before have them; false if there are none. use:
// [rows], 0 where any level will do, which then becomes what the bits give. Codes with one sample per step and as many steps as rows.
bool encode_trellis_levels(QuadCode code, const uint8_t * use, int rows, int lane, uint8_t * packed, uint8_t * levels);

} // namespace vidkv
