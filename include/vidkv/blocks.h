/* Blocks: pages that a host addresses by number and shares between its texts, as paged-attention engines do (vLLM). C API.
 *
 * A *block* is a page of 128 tokens of one layer, keys and values. Its packed bytes lie in the host's memory and are
 * complete in themselves (channel plans included): what they are depends on its own keys, values and queries alone, so it
 * does not matter for whom a block was filled. A block is packed as soon as it is full; its f16 rows stay beside it, in the
 * library's memory, while they are in the residual window of a text, and so do the rows of blocks that are not full and the
 * sink tokens of blocks that begin a text.
 *
 * Conventions are those of vidkv.h. A set of blocks is used by one thread at a time. */
#ifndef VIDKV_BLOCKS_H
#define VIDKV_BLOCKS_H

#include "vidkv/vidkv.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vidkv_blocks vidkv_blocks;

/* Bytes of a block in the host's memory, a multiple of 64; 0 if the parameters do not fit. Protection (params.protect) is
 * not for blocks. */
VIDKV_API uint64_t vidkv_block_bytes_sized(const vidkv_params * params, size_t params_size, int32_t kv_heads,
                                           int32_t head_dim);
static inline uint64_t vidkv_block_bytes(const vidkv_params * params, int32_t kv_heads, int32_t head_dim) {
    return vidkv_block_bytes_sized(params, sizeof(*params), kv_heads, head_dim);
}

typedef struct vidkv_blocks_shape {
    int32_t kv_heads, head_dim;
    int64_t blocks;
    uint8_t * memory; /* block i lies at memory + i * stride; on a boundary of 64 bytes; outlives the blocks */
    uint64_t stride;  /* a multiple of 64, at least vidkv_block_bytes */
    int32_t spare;    /* so many blocks that are not full keep their f16 rows although no batch names them */
} vidkv_blocks_shape;

VIDKV_API vidkv_status vidkv_blocks_create_sized(const vidkv_blocks_shape * shape, size_t shape_size,
                                                 const vidkv_params * params, size_t params_size, vidkv_blocks ** out);
static inline vidkv_status vidkv_blocks_create(const vidkv_blocks_shape * shape, const vidkv_params * params,
                                               vidkv_blocks ** out) {
    return vidkv_blocks_create_sized(shape, sizeof(*shape), params, sizeof(*params), out);
}
VIDKV_API void vidkv_blocks_free(vidkv_blocks * blocks);

/* A batch: the newest tokens of some texts, one after the other. Text r has the tokens query_start[r] ..
 * query_start[r + 1] - 1 of q, which are its last of lengths[r]; its blocks are table[r * table_stride + i], i = position /
 * 128. Rows of q, k, v and out are [heads][head_dim] (k, v: kv_heads), strides from token to token in elements. */
typedef struct vidkv_blocks_batch {
    const float * q;    /* null, and out too: k and v are written and packed, without knowing who will read them */
    const float *k, *v; /* null: the tokens are in the blocks already (layers that share a cache) */
    float * out;
    int64_t q_stride, k_stride, v_stride, out_stride;
    const int32_t * query_start; /* [texts + 1] */
    const int32_t * lengths;     /* [texts] */
    const int32_t * table;
    int64_t table_stride;
    int32_t texts, heads;
    int32_t causal;
    int32_t drafts; /* so many tokens at each text's end may be taken back by the next batch: not packed yet */
    float scale, softcap;
    const float * sinks; /* [heads] extra logits with no value, or null */
    int32_t threads;
} vidkv_blocks_batch;

/* Writes k and v, attends, and packs what is full. A token at the beginning of a block begins the block anew; one that was
 * written before takes its place and that of all behind it. */
VIDKV_API vidkv_status vidkv_blocks_attend_sized(vidkv_blocks * blocks, const vidkv_blocks_batch * batch,
                                                 size_t batch_size);
static inline vidkv_status vidkv_blocks_attend(vidkv_blocks * blocks, const vidkv_blocks_batch * batch) {
    return vidkv_blocks_attend_sized(blocks, batch, sizeof(*batch));
}

/* The queries of a text that stands for others, q [tokens][heads][head_dim]: keys of blocks begun from now on, at token `from` of their
 * text or behind it, up to the next `from` that was learned, are packed as if these had been seen before the block's own. With rotary
 * positions queries look elsewhere at other positions. The same queries give the same codes; 0 tokens: forgets all of them. */
VIDKV_API vidkv_status vidkv_blocks_learn(vidkv_blocks * blocks, int64_t from, const float * q, int64_t q_stride,
                                          int64_t tokens, int32_t heads);

/* A full block in bytes that another process can import: 0 if it is not packed. bytes_out may be null to ask for the size alone. */
VIDKV_API uint64_t vidkv_blocks_export(const vidkv_blocks * blocks, int64_t block, uint8_t * bytes_out);
/* VIDKV_E_FORMAT, and the block as it was, if these are not the bytes of a block of this shape and parameters. */
VIDKV_API vidkv_status vidkv_blocks_import(vidkv_blocks * blocks, int64_t block, const uint8_t * bytes, uint64_t size);

/* The rows of a block as f16 [128][kv_heads * head_dim], those not written as zeros. */
VIDKV_API vidkv_status vidkv_blocks_read_f16(const vidkv_blocks * blocks, vidkv_side side, int64_t block, uint16_t * rows);

typedef struct vidkv_blocks_stats {
    uint64_t bytes_beside; /* all that is held beside the host's memory: f16 rows, statistics of queries, sinks, tables */
    uint64_t bytes_rows;   /* of that, f16 rows */
    int64_t open, packed;  /* blocks with f16 rows; packed blocks */
} vidkv_blocks_stats;
VIDKV_API void vidkv_blocks_get_stats_sized(const vidkv_blocks * blocks, vidkv_blocks_stats * out, size_t stats_size);
static inline void vidkv_blocks_get_stats(const vidkv_blocks * blocks, vidkv_blocks_stats * out) {
    vidkv_blocks_get_stats_sized(blocks, out, sizeof(*out));
}

#ifdef __cplusplus
}
#endif
#endif
