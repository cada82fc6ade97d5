// The inner loops of attention, as a table of functions: one table an instruction set. The generic body (attention.cpp)
// does everything else. src/attention/kernels_scalar.cpp is the specification; src/cpu/ holds the fast ones.
#pragma once

#include <cstdint>
#include <limits>

#include "codec/layout.h"

namespace vidkv {

// out[r][c] += sum over j of a[r][j] * m[j][c], f32. Strides are in elements, from row to row.
struct Product {
    const float * a;
    int64_t a_stride;
    const float * m;
    int64_t m_stride;
    float * out;
    int64_t out_stride;
    int rows, inner;
    int width; // columns, a multiple of 8
};

// How a dot product becomes a score: softcap == 0: scale * dot; else softcap * tanh(scale * dot), scale already divided by
// softcap. Then slope * bias is added, and a cell whose bias is -inf is hidden.
struct ScoreRule {
    float scale = 1.0f;
    float softcap = 0.0f;
};

// Online softmax of one query row: largest score so far, and the sum of exp(score - maximum).
struct SoftmaxState {
    float maximum = -std::numeric_limits<float>::infinity();
    float sum = 0.0f;
};

// Tokens a tile: a multiple of 8; head_dim: a multiple of 8. Tiles and scratch hold f32.
struct Kernels {
    const char * name;

    // f16 rows, `stride` elements from token to token -> [head_dim][tokens]; the columns from `count` on become 0.
    void (*open_keys)(const uint16_t * rows, int64_t stride, int count, int head_dim, int tokens, float * tile);
    // f16 rows -> [count][head_dim]. Returns false if any element is infinite or not a number.
    bool (*open_values)(const uint16_t * rows, int64_t stride, int count, int head_dim, float * tile);

    // n elements of an f16 mask -> f32. Returns false if every one is -inf.
    bool (*load_mask)(const uint16_t * mask, int n, float * bias);

    void (*multiply_add)(const Product & product);

    // Turns n (a multiple of 8) dot products into weights exp(score - maximum), in place; raises the maximum and adds to
    // the sum. bias: [n] or null. Returns the factor (1 or less) for everything that was accumulated under the old maximum.
    // A score that is not a number makes the sum not a number.
    float (*softmax_step)(float * dots, int n, const ScoreRule & rule, const float * bias, float slope,
                          SoftmaxState & state);

    void (*scale)(float * x, int n, float factor);
};

extern const Kernels scalar_kernels;

} // namespace vidkv
