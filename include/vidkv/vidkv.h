/* libvidkv: a packed KV cache of 1.x bits per element, and attention that reads it. C API.
 *
 * Words: a *cell* is one token's slot. A *page* is 128 consecutive cells of one sequence. A page is *open* (rows in f16)
 * until it is *sealed* (packed once, never re-quantized); writing to a sealed cell reopens its page. A *group* is
 * group_size tokens of a page that share a scale. A *store* holds the keys or the values of one layer; a *cache* is a
 * stack of layers, each with a key store and a value store.
 *
 * Conventions: every function that can fail returns a vidkv_status; vidkv_last_error() then holds one line for people.
 * The library never prints, never aborts and never throws through this API. f16 is IEEE binary16 in a uint16_t.
 * A store may be read from several threads at once, each of which gets an OpenMP team of its own where the host has OpenMP;
 * writing needs exclusive access. A call that returns VIDKV_E_MEMORY can be made again.
 *
 * Structs grow at their end alone, and functions that take one are told its size: those named _sized, which the inline function of
 * the shorter name calls. So program and library may have different versions: fields that the program does not know are 0 and
 * mean what they meant before; a field that the library does not know is refused unless it is 0.
 */
#ifndef VIDKV_H
#define VIDKV_H

#include <stddef.h>
#include <stdint.h>

#if defined(VIDKV_SHARED) && defined(__GNUC__)
#define VIDKV_API __attribute__((visibility("default")))
#else
#define VIDKV_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum vidkv_status {
    VIDKV_OK = 0,
    VIDKV_E_ARGUMENT = 1, /* a parameter is out of range, or two do not fit together */
    VIDKV_E_MEMORY = 2,   /* no memory left */
    VIDKV_E_IO = 3,       /* a file could not be read or written */
    VIDKV_E_FORMAT = 4    /* a saved cache is cut off, altered, or of another shape or version */
} vidkv_status;

/* One line about the last failure on this thread; "" if there was none. Valid until the next call on this thread. */
VIDKV_API const char * vidkv_last_error(void);

/* The version of this header. While MAJOR is 0, functions may change with MINOR, and the shared library's name with
 * them. */
#define VIDKV_VERSION_MAJOR 0
#define VIDKV_VERSION_MINOR 1
#define VIDKV_VERSION_PATCH 0

/* The version of the library, "MAJOR.MINOR.PATCH". */
VIDKV_API const char * vidkv_version(void);

/* The instruction set in use: "scalar", "avx2", "vnni256", "avxvnni", "avx512vnni", "avx512" or "neon" (docs/performance.md says
 * which processors have it). VIDKV_FORCE_ISA in the environment chooses one of those this machine has (any other name is ignored,
 * and vidkv_isa_error() then says so; otherwise it is ""). All give the same bits. */
VIDKV_API const char * vidkv_isa(void);
VIDKV_API const char * vidkv_isa_error(void);

/* ---- presets ---------------------------------------------------------------------------------------------------- */

/* Cells of a page. */
#define VIDKV_PAGE 128

/* How one side is coded; docs/format.md describes both to the byte. */
typedef enum vidkv_codec {
    /* arXiv 2503.16257, section 3, corrected: one scale per channel and group. Keys: the (bits - 1) share of channels at 2 bits,
     * the rest by DFT + 1 bit. Values: 2 bits or ternary. */
    VIDKV_CODEC_PAPER = 0,
    /* Keys: a trellis or uniform code of 0..6 bits per channel, allotted over all heads of a layer by what the queries weigh.
     * Values: rotated, one scale per token, a trellis code. A group is a page. */
    VIDKV_CODEC_TRELLIS = 1
} vidkv_codec;

typedef struct vidkv_params {
    float key_bits;    /* bits of the codes alone. 16: f16. Paper: 1..2. Trellis: 0.5..5 */
    float value_bits;  /* 16: f16. Paper: 1.58 or 2. Trellis: 1, 1.5, 2, 3 or 4 */
    int32_t key_codec; /* vidkv_codec; without meaning where the side is f16 */
    int32_t value_codec;
    int32_t group_size;      /* paper: tokens that share a scale, 32, 64 or 128; trellis: 128 */
    int32_t residual_length; /* newest tokens kept in f16, >= 0; default 128 */
    int32_t sink_tokens;     /* first cells of each sequence kept in f16, 0..32; default 4 */
    float protect;           /* 0..0.5: share of tokens whose values get more bits (vidkv_store_protect); default 0 */
} vidkv_params;

/* Names:
 *   f16
 *   t4.2, t3.2, t2.2, t1.65, t1.15, t1.0
 *                                  trellis codes, named by the mean true bits of keys and values; how good they are depends on
 *                                  vidkv_store_observe_queries: without it all channels of the keys weigh the same
 *   k<bits>v<bits>[-g<group>]      the paper's, key bits 1..2 or 16, value bits 1.58, 2 or 16: k2v2, k1.5v1.58, k1.5v1.58-g128
 *   kt<bits>, vt<bits>             in the place of k and v: the trellis codes at any rate they have, as in kt1.5v2
 *   ...-stp<share>                 semantic token protection (paper, section 3.3) of that share of tokens: k1.5v1.58-stp0.2 */
VIDKV_API vidkv_status vidkv_params_from_preset_sized(const char * name, vidkv_params * out, size_t params_size);
static inline vidkv_status vidkv_params_from_preset(const char * name, vidkv_params * out) {
    return vidkv_params_from_preset_sized(name, out, sizeof(*out));
}

/* The presets worth listing, in order of falling bits; NULL past the end. */
VIDKV_API const char * vidkv_preset_name(size_t index);

/* Checks the parameters by themselves and, where head_dim is not 0, for that head_dim (a multiple of 8, 8..512). */
VIDKV_API vidkv_status vidkv_params_check_sized(const vidkv_params * params, size_t params_size, int32_t head_dim);
static inline vidkv_status vidkv_params_check(const vidkv_params * params, int32_t head_dim) {
    return vidkv_params_check_sized(params, sizeof(*params), head_dim);
}

typedef enum vidkv_side { VIDKV_KEYS = 0, VIDKV_VALUES = 1 } vidkv_side;

/* Bits per element of a sealed page, all metadata included; 0 if the parameters do not fit. The channel plan of a sequence
 * (at most 4 bytes per channel and sequence) is the only thing outside: bytes held counts it. */
VIDKV_API double vidkv_true_bits_sized(const vidkv_params * params, size_t params_size, vidkv_side side, int32_t head_dim);
static inline double vidkv_true_bits(const vidkv_params * params, vidkv_side side, int32_t head_dim) {
    return vidkv_true_bits_sized(params, sizeof(*params), side, head_dim);
}

/* ---- store: keys or values of one layer -------------------------------------------------------------------------- */

typedef struct vidkv_store vidkv_store;

typedef struct vidkv_store_shape {
    int32_t side;      /* vidkv_side */
    int32_t channels;  /* kv_heads * head_dim */
    int32_t head_dim;  /* 0 if not known yet: nothing is sealed until vidkv_store_set_head_dim */
    int64_t cells;     /* capacity of one sequence */
    int32_t sequences; /* independent sequences, >= 1 */
} vidkv_store_shape;

VIDKV_API vidkv_status vidkv_store_create_sized(const vidkv_store_shape * shape, size_t shape_size,
                                                const vidkv_params * params, size_t params_size, vidkv_store ** out);
static inline vidkv_status vidkv_store_create(const vidkv_store_shape * shape, const vidkv_params * params,
                                              vidkv_store ** out) {
    return vidkv_store_create_sized(shape, sizeof(*shape), params, sizeof(*params), out);
}
VIDKV_API void vidkv_store_free(vidkv_store * store);

/* Fixes the head_dim of a store made with 0. Calling it again with the same value does nothing; with another one fails. */
VIDKV_API vidkv_status vidkv_store_set_head_dim(vidkv_store * store, int32_t head_dim);

/* Writes n rows of `channels` elements; row i goes to cell cells[i] of the sequence. stride: elements from row to row.
 * Pages that are sealed are reopened, but for sink tokens, which lie in f16 beside them. Nothing is sealed by writing: see
 * vidkv_store_seal. */
VIDKV_API vidkv_status vidkv_store_write_f32(vidkv_store * store, int32_t sequence, const int64_t * cells, int64_t n,
                                             const float * rows, int64_t stride);
VIDKV_API vidkv_status vidkv_store_write_f16(vidkv_store * store, int32_t sequence, const int64_t * cells, int64_t n,
                                             const uint16_t * rows, int64_t stride);

/* Reads n cells from first_cell on as f16 rows (dense, `channels` elements per row). Cells never written read as zero. */
VIDKV_API vidkv_status vidkv_store_read_f16(const vidkv_store * store, int32_t sequence, int64_t first_cell, int64_t n,
                                            uint16_t * rows);

/* Seals every open page whose newest cell has been followed by at least max(residual_length, VIDKV_PAGE) later writes to its
 * sequence. Call it when all queries of the tokens just written have been answered (a seal inside the batch costs accuracy). */
VIDKV_API vidkv_status vidkv_store_seal(vidkv_store * store, int32_t threads);

/* A host that knows better than the order of writes what is old seals by page (cells 128 i .. 128 i + 127 are page i), and
 * the pages of many stores at once, which share the threads. Pages that are not open are left alone. For a value store, `keys`
 * names the key store of its layer (or is NULL): tokens are then marked as vidkv_store_protect_by_queries would, before
 * any key is packed. */
typedef struct vidkv_seal_request {
    vidkv_store * store;
    int32_t sequence;
    const int64_t * pages;
    int64_t n_pages;
    const vidkv_store * keys;
    float scale; /* of attention; for `keys` */
} vidkv_seal_request;
VIDKV_API vidkv_status vidkv_seal_pages_sized(const vidkv_seal_request * requests, size_t request_size, int64_t n,
                                              int32_t threads);
static inline vidkv_status vidkv_seal_pages(const vidkv_seal_request * requests, int64_t n, int32_t threads) {
    return vidkv_seal_pages_sized(requests, sizeof(*requests), n, threads);
}

/* Several texts in one sequence of a store: a text begins with this page, whose first sink_tokens cells are then kept in
 * f16. Call it before the page is written. Once called, page 0 is one like any other. */
VIDKV_API vidkv_status vidkv_store_begin(vidkv_store * store, int32_t sequence, int64_t page);

/* Forgets cells without reopening their pages; a page that holds none any more is freed, and is then as if never begun. */
VIDKV_API vidkv_status vidkv_store_erase(vidkv_store * store, int32_t sequence, const int64_t * cells, int64_t n);

/* From now on nothing more of this store is sealed (a sliding-window cache recycles its cells: it stays in f16). */
VIDKV_API void vidkv_store_keep_open(vidkv_store * store);

/* Tells a key store which queries its keys are read by: q [tokens][heads][head_dim], strides in elements, heads a multiple of
 * kv_heads. Trellis keys spend their bits where these queries look (E[q q^T] of each KV head, newer queries counting more);
 * without any, all channels weigh the same. Does nothing for other codecs. Call it before vidkv_store_seal. */
VIDKV_API vidkv_status vidkv_store_observe_queries(vidkv_store * store, int32_t sequence, const float * q, int64_t tokens,
                                                   int32_t heads, int64_t token_stride, int64_t head_stride);

/* The same on several threads; the result is the same bit for bit. */
VIDKV_API vidkv_status vidkv_store_observe_batch(vidkv_store * store, int32_t sequence, const float * q, int64_t tokens,
                                                 int32_t heads, int64_t token_stride, int64_t head_stride, int32_t threads);

/* Marks cells of a value store as protected: their values get more bits when their page is sealed, where params.protect is
 * not 0. Cells may be marked before they are written. Forgotten by truncate and clear. */
VIDKV_API vidkv_status vidkv_store_protect(vidkv_store * values, int32_t sequence, const int64_t * cells, int64_t n);

/* For sequences in which nobody marked cells: marks, in the pages of `values` that the next seal will pack, the params.protect
 * share of tokens that the queries observed by `keys` attend to most (log E[exp(scale q.k)] of a Gaussian with their
 * statistics). scale: of attention, 1/sqrt(head_dim) as a rule. Call it before either store is sealed. */
VIDKV_API vidkv_status vidkv_store_protect_by_queries(vidkv_store * values, const vidkv_store * keys, float scale);

/* Forgets the cells first_cell.. of a sequence. A page that is cut through is reopened, and is not sealed before it has
 * aged anew. */
VIDKV_API vidkv_status vidkv_store_truncate(vidkv_store * store, int32_t sequence, int64_t first_cell);

/* Makes `to` an exact copy of `from`: their pages are shared until one of them writes to them. */
VIDKV_API vidkv_status vidkv_store_copy_sequence(vidkv_store * store, int32_t from, int32_t to);

/* Changes the capacity, in cells per sequence and in sequences; what is kept stays bit for bit. Cells that would be lost must
 * not have been written; sequences beyond the new number are forgotten. */
VIDKV_API vidkv_status vidkv_store_resize(vidkv_store * store, int64_t cells, int32_t sequences);

/* A new store that is an exact copy: pages are shared likewise. */
VIDKV_API vidkv_status vidkv_store_clone(const vidkv_store * store, vidkv_store ** out);

/* A sealed page as it is stored (docs/format.md), for readers that decode by themselves: NULL and 0 if that page is not sealed.
 * Valid until the next write to the store. */
VIDKV_API const uint8_t * vidkv_store_sealed_page(const vidkv_store * store, int32_t sequence, int64_t page,
                                                  uint64_t * bytes);

/* The channel plan that sealed key pages of one KV head need beside their bytes: order [head_dim] and, with trellis keys, means
 * [head_dim] (f16; otherwise it is left alone and may be NULL). Fails while the sequence has no sealed page. */
VIDKV_API vidkv_status vidkv_store_channel_plan(const vidkv_store * store, int32_t sequence, int32_t kv_head,
                                                uint16_t * order, uint16_t * means);

/* Forgets a page that is read elsewhere from a copy, on another device say. Its cells are then as if never written, but the
 * sequence keeps its channel plan for as long as any page is sealed or released. */
VIDKV_API vidkv_status vidkv_store_release_page(vidkv_store * store, int32_t sequence, int64_t page);

/* A sealed page with all that is needed to read it in another store of the same side, preset and shape: `data` has room for
 * *bytes, which then says how many they are (NULL: that alone). Rows of its first *sinks cells are not in them. */
VIDKV_API vidkv_status vidkv_store_export_page(const vidkv_store * store, int32_t sequence, int64_t page, uint8_t * data,
                                               uint64_t * bytes, int32_t * sinks);

/* Packs a page that is open, and holds the rows of all its cells, with the codes of an exported one: nothing is quantized, and
 * the page keeps its channel plan. VIDKV_E_FORMAT, and nothing has changed, where the bytes are of another preset or altered. */
VIDKV_API vidkv_status vidkv_store_import_page(vidkv_store * store, int32_t sequence, int64_t page, const uint8_t * data,
                                               uint64_t bytes);

/* A rotation of keys by their position (RoPE). Pair i of each head is its channels a = first + i * step and b = a + apart; a shift
 * by n positions makes of them gain * (a cos(n angle) - b sin(n angle)) and gain * (a sin(n angle) + b cos(n angle)). */
typedef struct vidkv_rotation {
    int32_t first, step, apart, pairs; /* NEOX: step 1, apart = pairs; neighbours: step 2, apart 1 */
    const double * angles;             /* [pairs], in radians */
    float gain;                        /* 1, as a rule */
} vidkv_rotation;

/* Shifts keys to other positions: that of cells[i] by shifts[i]. The codes of sealed pages stay as they are; attention turns the query
 * back instead, and reading turns the key. Keys that lie in f16 (open pages, sink tokens) are left to the caller, who reads, rotates
 * and writes them; so are those of a page with more than four shifts of its cells, or another rotation before.
 * left: room for n, gets which i were left, in rising order; *n_left: how many. A cell is named once. */
VIDKV_API vidkv_status vidkv_store_shift_sized(vidkv_store * keys, int32_t sequence, const int64_t * cells,
                                               const int32_t * shifts, int64_t n, const vidkv_rotation * rotation,
                                               size_t rotation_size, int64_t * left, int64_t * n_left);
static inline vidkv_status vidkv_store_shift(vidkv_store * keys, int32_t sequence, const int64_t * cells,
                                             const int32_t * shifts, int64_t n, const vidkv_rotation * rotation,
                                             int64_t * left, int64_t * n_left) {
    return vidkv_store_shift_sized(keys, sequence, cells, shifts, n, rotation, sizeof(*rotation), left, n_left);
}

VIDKV_API void vidkv_store_clear(vidkv_store * store);

/* What a store holds at this moment. bytes counts every allocation: codes, metadata, f16 rows, sinks, channel plans and
 * the table of pages. */
typedef struct vidkv_store_stats {
    uint64_t bytes;         /* all bytes held */
    uint64_t bytes_f16;     /* what the written cells would take in f16 */
    uint64_t bytes_planned; /* bytes when every cell is written and all but the residual window is sealed */
    uint64_t sealed_bytes;  /* packed blocks alone */
    int64_t cells_written;
    int64_t cells_sealed;
    int64_t pages_reopened; /* times a sealed page was opened again */
    uint64_t bytes_mapped;  /* of bytes: pages that lie in a mapped file (vidkv_file_load) */
} vidkv_store_stats;
VIDKV_API void vidkv_store_get_stats_sized(const vidkv_store * store, vidkv_store_stats * out, size_t stats_size);
static inline void vidkv_store_get_stats(const vidkv_store * store, vidkv_store_stats * out) {
    vidkv_store_get_stats_sized(store, out, sizeof(*out));
}

/* bytes_planned for a store that does not exist yet. */
VIDKV_API uint64_t vidkv_planned_bytes_sized(const vidkv_store_shape * shape, size_t shape_size,
                                             const vidkv_params * params, size_t params_size);
static inline uint64_t vidkv_planned_bytes(const vidkv_store_shape * shape, const vidkv_params * params) {
    return vidkv_planned_bytes_sized(shape, sizeof(*shape), params, sizeof(*params));
}

/* ---- attention ---------------------------------------------------------------------------------------------------- */

/* softmax(scale * Q K^T + mask) V for one sequence, grouped-query heads (heads is a multiple of kv_heads; query head h
 * reads KV head h / (heads / kv_heads)). Strides are in elements. */
typedef struct vidkv_attention_args {
    const float * q; /* [tokens][heads][head_dim of K] */
    int64_t q_token_stride, q_head_stride;
    float * out; /* [tokens][heads][head_dim of V] */
    int64_t out_token_stride, out_head_stride;
    int64_t tokens;         /* query tokens */
    int32_t heads;          /* query heads */
    int64_t cells;          /* the first `cells` cells of the sequence are attended to */
    int32_t sequence;       /* sequence of the key store */
    int32_t value_sequence; /* sequence of the value store (the same one, as a rule) */
    const uint16_t * mask;  /* f16 [tokens][cells], added to the scores, -inf hides; NULL: none */
    int64_t mask_stride;    /* elements from token to token */
    int32_t causal;         /* non-zero: query token i sees cells 0 .. cells - tokens + i (mask may be given too) */
    float scale;            /* 1/sqrt(head_dim), as a rule */
    float softcap;          /* 0: none; else scores become softcap * tanh(scale * qk / softcap), before the mask */
    float max_bias;         /* 0: none; else ALiBi: the mask is multiplied by the head's slope (as ggml does) */
    const float * sinks;    /* attention sinks: [heads] extra logits with no value; NULL: none */
    int32_t threads;        /* >= 1; at most so many, fewer where there is little to do */
} vidkv_attention_args;

/* A query token that sees nothing gets zeros. */
VIDKV_API vidkv_status vidkv_attention_sized(const vidkv_store * keys, const vidkv_store * values,
                                             const vidkv_attention_args * args, size_t args_size);
static inline vidkv_status vidkv_attention(const vidkv_store * keys, const vidkv_store * values,
                                           const vidkv_attention_args * args) {
    return vidkv_attention_sized(keys, values, args, sizeof(*args));
}

/* n calls at once, on the same two stores: their sequences share one parallel loop, and what copies of a sequence have in common is
 * unpacked once for all of them. heads, scale, softcap, max_bias, sinks and threads are those of the first call. Results differ from
 * those of single calls by rounding alone. */
VIDKV_API vidkv_status vidkv_attention_batch_sized(const vidkv_store * keys, const vidkv_store * values,
                                                   const vidkv_attention_args * calls, size_t args_size, int64_t n);
static inline vidkv_status vidkv_attention_batch(const vidkv_store * keys, const vidkv_store * values,
                                                 const vidkv_attention_args * calls, int64_t n) {
    return vidkv_attention_batch_sized(keys, values, calls, sizeof(*calls), n);
}

/* ---- cache: all layers -------------------------------------------------------------------------------------------- */

typedef struct vidkv_cache vidkv_cache;

typedef struct vidkv_cache_shape {
    int32_t layers, kv_heads, head_dim; /* head_dim for keys and values alike */
    int64_t cells;
    int32_t sequences;
} vidkv_cache_shape;

VIDKV_API vidkv_status vidkv_cache_create_sized(const vidkv_cache_shape * shape, size_t shape_size,
                                                const vidkv_params * params, size_t params_size, vidkv_cache ** out);
static inline vidkv_status vidkv_cache_create(const vidkv_cache_shape * shape, const vidkv_params * params,
                                              vidkv_cache ** out) {
    return vidkv_cache_create_sized(shape, sizeof(*shape), params, sizeof(*params), out);
}
VIDKV_API void vidkv_cache_free(vidkv_cache * cache);
VIDKV_API vidkv_store * vidkv_cache_keys(vidkv_cache * cache, int32_t layer);
VIDKV_API vidkv_store * vidkv_cache_values(vidkv_cache * cache, int32_t layer);

/* Appends n tokens to one layer of a sequence: rows are [n][kv_heads][head_dim], dense. */
VIDKV_API vidkv_status vidkv_cache_append(vidkv_cache * cache, int32_t layer, int32_t sequence, int64_t n, const float * k,
                                          const float * v);
/* Cells appended so far to that layer of the sequence. */
VIDKV_API int64_t vidkv_cache_length(const vidkv_cache * cache, int32_t layer, int32_t sequence);
/* vidkv_store_observe_queries on that layer's keys. */
VIDKV_API vidkv_status vidkv_cache_observe_queries(vidkv_cache * cache, int32_t layer, int32_t sequence, const float * q,
                                                   int64_t tokens, int32_t heads);
/* Marks cells in the values of all layers. */
VIDKV_API vidkv_status vidkv_cache_protect(vidkv_cache * cache, int32_t sequence, const int64_t * cells, int64_t n);
/* Where params.protect asks for it and nobody marked cells, the tokens that the queries attend to most are protected. */
VIDKV_API vidkv_status vidkv_cache_seal(vidkv_cache * cache, int32_t threads);
VIDKV_API vidkv_status vidkv_cache_truncate(vidkv_cache * cache, int32_t sequence, int64_t length);
VIDKV_API vidkv_status vidkv_cache_copy_sequence(vidkv_cache * cache, int32_t from, int32_t to);
VIDKV_API void vidkv_cache_clear(vidkv_cache * cache);
VIDKV_API void vidkv_cache_get_stats_sized(const vidkv_cache * cache, vidkv_store_stats * out, size_t stats_size);
static inline void vidkv_cache_get_stats(const vidkv_cache * cache, vidkv_store_stats * out) {
    vidkv_cache_get_stats_sized(cache, out, sizeof(*out));
}

/* Writes the whole cache (sealed pages bit for bit) to a file, as vidkv/file.h does: beside it first, then renamed, so a failure
 * leaves the old file. Loading fills a cache of the same layers, heads and parameters with room for it, in place of what it held; on
 * failure the cache is as it was. Stores that were asked for before (vidkv_cache_keys, vidkv_cache_values) stay good. */
VIDKV_API vidkv_status vidkv_cache_save(const vidkv_cache * cache, const char * path);
VIDKV_API vidkv_status vidkv_cache_load(vidkv_cache * cache, const char * path);

#ifdef __cplusplus
}
#endif
#endif
