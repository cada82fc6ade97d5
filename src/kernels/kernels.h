// The inner loops of attention, as a table of functions: one table per instruction set. attention.cpp does everything else.
// src/kernels/scalar.cpp is the specification, src/kernels/ holds the fast ones; all give the same bits (docs/numerics.md).
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/prefetch.h"
#include "codec/layout.h"

namespace vidkv {

constexpr int row_block = 8;       // kernels take up to 8 query rows at once
constexpr int operand_bytes = 128; // int8 factors of one row: 32 quads of four lanes, a slab; keys have up to 4 slabs
constexpr int slab_quads = operand_bytes / 4;
constexpr int largest_head_dim = 512;
constexpr int level_slack = 64; // bytes behind unpacked levels that kernels may read and overwrite

constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// Unpacked levels: [quad][rows][4 lanes], one byte each.

// Neighbouring quads of values of one code, whose levels are at most `largest`.
struct LevelRun {
    int first, quads, largest;
    QuadCode code;
    const uint8_t * packed; // the first one's codes, for kernels that unpack as they multiply
};

// A quad of packed keys, wherever it stands in its page.
struct KeyQuad {
    uint32_t packed;  // where its codes are: bytes from those of the head
    uint16_t factors; // where row 0 of its factors is: bytes from FoldedQueries::q
    uint16_t quad;    // where its levels are, unpacked
};
constexpr KeyQuad key_quad(int quad, uint32_t packed) {
    const int factors = quad / slab_quads * (row_block * operand_bytes) + quad % slab_quads * 4;
    return {packed, static_cast<uint16_t>(factors), static_cast<uint16_t>(quad)};
}
// Quads of one code, one after the other in a list; or of several codes, where the levels are unpacked.
struct KeyRun {
    int first, quads, largest; // largest level
    QuadCode code;
};

constexpr int most_sorted = 64; // quads that are sorted at once
// What Kernels::sort_quads writes.
struct QuadOrder {
    KeyQuad * sorted; // those that have a code, sorted by it; room for 2 * most_sorted
    uint8_t * counts; // of each code, in their order (quad_order.h)
    float * step;     // of a level of each channel in units of the channel's scale; room for a multiple of 16 channels
    uint8_t * offset; // of each channel, twice the middle of its levels; room for a multiple of 64
};

constexpr int largest_groups = page_tokens / 32; // of a page
constexpr int largest_runs = 3;                  // of a group of values

// What an element of packed keys means, in plan-ordered channels: step * (level - offset / 2) + center.
struct KeySteps {
    const float * step;     // [groups][channels]
    const uint8_t * offset; // [channels], at most 63
    const float * center;   // [groups][channels]
    int channels;           // a multiple of 64
    int centered;           // only the first so many may have a center other than 0; a multiple of 64
    int groups;
};

// The largest magnitude that becomes an int8 factor of 127 is taken to be at least this.
constexpr float least_query_factor = 1e-20f, least_weight_factor = 1e-25f;

// Query rows times the keys' steps, rounded to int8: the score of a token is scale * (sum of q * level - offset) + base.
struct FoldedQueries {
    alignas(64) int8_t q[largest_head_dim / operand_bytes * row_block * operand_bytes]; // [slab][row][operand_bytes]
    float scale[row_block], offset[row_block], base[row_block];
};

struct KeyProduct {
    const uint8_t * levels; // [quad][page_tokens][4]
    const uint8_t * codes;  // of the head, for kernels that unpack as they multiply
    const KeyQuad * quads;
    const KeyRun * runs;
    int run_count;
    int first_token, tokens; // multiples of 32
    const FoldedQueries * folded;
    int rows;
    float * scores; // [rows][page_tokens]
    Fetch * soon = nullptr;
};

// Online softmax of one query row. Scores count in units of log 2: weights are 2^(score - reference), and the reference is raised
// to the largest score only when that is more than `reference_slack` above it.
struct SoftmaxState {
    float reference = -std::numeric_limits<float>::infinity();
    float sum = 0.0f;
};
constexpr float reference_slack = 11.0f;

struct SoftmaxTile {
    float * scores; // [rows][page_tokens], become weights
    int rows;
    const float * const * bias; // per row: [page_tokens] to add, -inf hides; null: none. Null itself: none in any row
    const float * slopes;       // per row: multiplies the bias
    float softcap;              // not 0: scores become softcap * tanh(score)
    SoftmaxState * states;      // per row
    float * factors;            // per row: what was accumulated so far must be multiplied by it (1 as a rule)
};

// Softmax weights as int8 factors; the slots of a page fall into 1, 2 or 4 groups.
struct PackedWeights {
    alignas(64) int8_t w[row_block * operand_bytes]; // [row][slot]
    float scale[row_block];                          // weight = scale * w
    float sum[largest_groups][row_block];            // of w over a group: whole numbers
    // Of the weights before slot scales and rounding: in units of `scale`, if asked for; times WeightRule::along, if there is one.
    float total[largest_groups][row_block];
    float along[row_block];
};

struct WeightRule {
    const uint8_t * token;
    const float * slot_scale; // null, or else there is one group
    int groups;
    bool totals;                   // wanted
    const float * along = nullptr; // [page_tokens], by slot; only with a slot_scale
};

// One group of a page's values. All groups together add to the sums:
// out[row][c] += scale[row] * (sum of step[c] * (dot - offset[row]) + center[c] * total[row])
struct ValueGroup {
    LevelRun runs[largest_runs];
    int run_count;
    const float * step;   // null: 1
    const float * center; // what the middle of the levels stands for; null: 0
    float offset[row_block], total[row_block];
};
struct ValueProduct {
    const uint8_t * levels; // [quad][..][4], `stride` bytes from quad to quad
    int stride;
    int channels;           // rounded up to a multiple of 16: levels and outputs are there
    const int8_t * weights; // PackedWeights::w
    int rows;
    float scale[row_block];
    int groups;
    ValueGroup group[largest_groups];
    float * out;
    int64_t out_stride;
    Fetch * soon = nullptr;
};

// f16 rows of `count` cells, `stride` elements apart.
struct HalfRows {
    const uint16_t * rows;
    int64_t stride;
    int count, head_dim;
};

enum class MaskKind { hidden, zero, mixed }; // all -inf, all 0, anything

// head_dim: a multiple of 8. Arrays that kernels write are aligned to 64 bytes.
struct Kernels {
    const char * name;

    // `quads` quads of one code, one after the other -> levels, `stride` bytes from quad to quad.
    void (*unpack_quads)(QuadCode code, const uint8_t * packed, int rows, int quads, int stride, uint8_t * levels);
    // Ternary digits (trit.h): byte j holds digits j, j + bytes, .. -> 5 * bytes levels.
    void (*unpack_ternary)(const uint8_t * packed, int bytes, uint8_t * levels);
    void (*load_halves)(const uint8_t * halves, int n, float * out);
    void (*load_log_scales)(const uint8_t * codes, int n, float unit, float * out); // log_scale.h, times unit
    // Trellis keys: n log scales, n signed bytes of means in eighths of the scale -> step = unit * scale, center = mean * scale.
    void (*load_key_scales)(const uint8_t * meta, int n, const float * unit, float * step, float * center);
    // Two-bit grids: n half scales and n half minima -> step, and center = minimum + middle * step.
    void (*load_grid)(const uint8_t * scales, const uint8_t * minima, int n, float middle, float * step, float * center);
    MaskKind (*load_mask)(const uint16_t * mask, int n, float * bias); // mixed: fills the bias
    // For products that read the codes. Sorts the quads `first` (a multiple of 16) to `end`, up to most_sorted, of a page of trellis
    // keys by their codes, four bits each. `packed`: where the codes of the first one begin; returns where those of the last one end.
    uint32_t (*sort_quads)(const uint8_t * codes, int first, int end, uint32_t packed, const QuadOrder & order);

    // queries: [rows][stride], zeros up to a multiple of 64 channels. base: one number per row, added to what comes from
    // the centers. out: one per group.
    void (*fold_queries)(const float * queries, int64_t stride, int rows, const KeySteps & keys, const float * base,
                         FoldedQueries * out);
    void (*score_levels)(const KeyProduct & product);
    // The same from packed codes, for up to row_block rows; parts of a page must be of uniform1 and uniform2 alone. Null where
    // unpacking first is as fast.
    void (*score_codes)(const KeyProduct & product);
    // scores[row][0 .. count) = query . key; queries as above.
    void (*score_halves)(const float * queries, int64_t stride, int rows, const HalfRows & keys, float * scores);

    // Returns whether any factor is not 1; otherwise they may be left as they are.
    bool (*softmax)(const SoftmaxTile & tile);

    // softmax and pack_weights at once, with a coarser power of two; rule.token must be null. The scores are lost.
    bool (*weigh)(const SoftmaxTile & tile, const WeightRule & rule, PackedWeights & out);
    // weights [rows][page_tokens]; slot s takes token token[s] (null: token s), times slot_scale[s] (null: 1).
    void (*pack_weights)(const float * weights, int rows, const WeightRule & rule, PackedWeights & out);
    void (*add_levels)(const ValueProduct & product);
    // The same from packed codes, for up to row_block rows and 64, 128 or 256 channels; several groups must be of uniform2 alone. May be null.
    void (*add_codes)(const ValueProduct & product);
    // out[row][c] += sum of weights[row][t] * value[t][c]; cells of weight 0 are left out. out: channels up to a multiple of 16.
    void (*add_halves)(const float * weights, int rows, const HalfRows & values, float * out, int64_t out_stride);

    // n: a multiple of 16
    void (*scale)(float * x, int n, float factor);
    void (*add_scaled)(const float * x, float factor, int n, float * out); // out += factor * x
    void (*hadamard)(float * x, int n);                                    // in place, not normalised; n: a power of two
};

extern const Kernels scalar_kernels;

} // namespace vidkv
