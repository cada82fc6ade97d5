// The inner loops of packing that wide vectors make faster, one table for each instruction set. All give the same bits: whole numbers,
// floats element by element, and sums in the 16 lanes and the order that encoder_loops.inc lays down.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/trellis.h"

namespace vidkv {

struct Moments {
    float mean = 0, variance = 0;
};

// Rows are f32 [128], one number for each token of a page, unless it says otherwise.
struct EncoderLoops {
    const char * name;

    // The cheapest ring (codec/viterbi.h). x: [steps][samples] pairs of a sample and its weight in coding order; seam: low bits of the
    // last state, or -1: to be found; came: search_room bytes; path: the state of every coding step.
    void (*search)(const TrellisTable & table, int steps, const float * x, int seam, uint8_t * came, uint8_t * path);

    // Weighted: 0 where all weights are.
    Moments (*moments)(const float * x, const float * weight);
    // target += factors[i] * rows[order[i]] for i = 0 .. n - 1, one after the other. order null: 0, 1, ..
    void (*pull)(float * target, const float * rows, const float * factors, const uint16_t * order, size_t n);
    // out = row - mean where weight is above 0, else 0.
    void (*aim)(const float * row, float mean, const float * weight, float * out);
    // out = (row - mean) / deviation where weight is above 0, else 0.
    void (*standardize)(const float * row, float mean, float deviation, const float * weight, float * out);
    // Sum of weight * x * y.
    float (*dot)(const float * x, const float * y, const float * weight);
    // Sum of weight * (x - factor * y) over the sum of weights; 0 where that is 0.
    float (*mean_rest)(const float * x, const float * y, float factor, const float * weight);
    // Sum of weight * (x - y)^2.
    float (*distance)(const float * x, const float * y, const float * weight);

    // Channels from .. to - 1, even numbers, of mean and of the lower triangle `second` (by rows) decay, then take the rows and their
    // products with channels 0 .. to - 1, times the rows' weights.
    void (*add_products)(float * second, float * mean, int from, int to, float decay, const float * const * rows,
                         const float * weights, size_t row_count);
    // h [n][n] symmetric, u likewise: h = u u^T with u[c][j] of column c = row c here, upper triangular (u[c][j] is 0 for j > c): from
    // the last column back.
    void (*factor)(const double * h, size_t n, double * u);
};

// Bytes that a search of so many steps needs beside its path; the first search, which closes the ring, may be the longer one.
constexpr int trellis_states = 256, longest_warm_up = 24;
constexpr size_t search_room(int steps) { return static_cast<size_t>(steps) * trellis_states / 2; }

// The best that this machine has; all of them; the others must equal the first one, which is compiled for any machine.
const EncoderLoops & encoder_loops();
const std::vector<const EncoderLoops *> & supported_encoder_loops();

} // namespace vidkv
