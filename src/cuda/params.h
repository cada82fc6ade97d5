// What a launch of attention is told, and how it lays out its memory.
#pragma once

#include <cstdint>

#include "codec/quad.h"
#include "cuda/levels.h"

namespace vidkv::cuda {

constexpr int page_tokens = 128;
constexpr int lanes_per_warp = 32;
constexpr int sequences_per_launch = 16;
constexpr int rows_per_tile = 8; // query rows that one product of tensor cores takes
constexpr int byte_stride = 144; // from a query row to the next in int8 factors: no two rows meet in a bank

enum class Number : int32_t { f32 = 0, f16 = 1, bf16 = 2 };

// f16 rows of all KV heads.
struct HalfRowsOf {
    const uint16_t * rows;
    int64_t head_stride, row_stride;
};

struct SequenceParams {
    const uint8_t * const * key_pages; // sealed pages, cells 0 .. 128 pages - 1
    const uint8_t * const * value_pages;
    const int16_t * order;             // [kv_heads][D] channel plans
    const float * means;               // [kv_heads][D]
    HalfRowsOf key_sinks, value_sinks; // cells 0 .. sinks - 1, where there are pages
    HalfRowsOf keys, values;           // the cells behind the pages
    int32_t pages, sinks, cells;
};

struct AttentionParams {
    int32_t kv_heads, ratio, tokens; // query heads of a KV head; query tokens
    int32_t row_blocks, splits;      // a block of threads has one row block and one part of the pages
    int32_t warps;
    // pages
    int32_t key_codes; // bytes of the codes of all heads
    int32_t value_head_codes, value_quad;
    int32_t narrow_quad, mean_bytes,
        direction_bytes;     // still pages: the size of a narrower quad, what is at the end of the codes
    int32_t first_narrow[2]; // the quads from there on are narrower; with a direction
    QuadCode value_code, narrow_code;
    // shared memory of a warp
    int32_t key_room, value_room, warp_bytes;
    // queries, results
    const void * q;
    void * out;
    int64_t q_sequence, q_token, q_head, out_sequence, out_token, out_head; // strides in elements
    Number q_number, out_number;
    const uint16_t * mask; // [tokens][cells], or null
    int64_t mask_stride;
    const float * sinks;   // [heads] attention sinks, or null
    float factor, softcap; // what queries are multiplied with; log2(e) in it unless scores are capped
    int32_t causal;
    uint32_t signs[4];  // of the rotation of values
    float * parts;      // [item][splits + 1][part]
    int32_t * counters; // [item], zeros before and after
    const LevelTables * tables;
    SequenceParams sequences[sequences_per_launch];
};

// What a warp, and then a block, has summed: of each row the largest score, the sum of weights, the weighted sum of values.
template <int D, int NT> struct PartLayout {
    static constexpr int rows = rows_per_tile * NT;
    static constexpr int floats = rows * (D + 2);
    VIDKV_DEVICE static float * top(float * part) { return part; }
    VIDKV_DEVICE static float * total(float * part) { return part + rows; }
    VIDKV_DEVICE static float * sum(float * part) { return part + 2 * rows; }
};

// Shared memory of a block: queries in both orders of channels, what plans add, the tables; then each warp's own.
template <int D, int NT> struct BlockLayout {
    static constexpr int rows = rows_per_tile * NT;
    static constexpr int query_stride = D + 4; // floats; no two rows meet in a bank
    static constexpr int queries = 0;
    static constexpr int bases = queries + 4 * rows * query_stride;
    static constexpr int message = bases + 4 * rows;
    static constexpr int tables = message + 16;
    static constexpr int warps = tables + static_cast<int>(sizeof(LevelTables));
    // of a warp, behind the room for keys and values
    static constexpr int steps = 0;
    static constexpr int centers = steps + 4 * D;
    static constexpr int slots = centers + 4 * D;
    static constexpr int factors = slots + 4 * page_tokens; // int8 queries, then int8 weights; f32 weights of open rows
    static constexpr int warp_rest = factors + rows * byte_stride;
};

} // namespace vidkv::cuda
