/* libggml-vidkv.so: a ggml backend that keeps the KV cache of an unmodified llama.cpp in vidkv stores.
 *
 * A host that loads the plug-in by itself (GGML_BACKEND_PATH, or ggml_backend_load) needs none of this. A host that wants
 * numbers, or wants to choose the parameters without environment variables, asks the registry for these functions:
 *
 *     ggml_backend_reg_t reg = ggml_backend_load("libggml-vidkv.so");   // or ggml_backend_reg_by_name(VIDKV_REG_NAME)
 *     vidkv_configure_t configure = (vidkv_configure_t) ggml_backend_reg_get_proc_address(reg, VIDKV_PROC_CONFIGURE);
 *     const char * error = configure("k2v2", NULL);
 *
 * The device is called VIDKV_DEVICE_NAME: ggml_backend_dev_by_name(VIDKV_DEVICE_NAME), or --device VIDKV.
 */
#ifndef GGML_VIDKV_H
#define GGML_VIDKV_H

#include "vidkv/layers.h"
#include "vidkv/vidkv.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VIDKV_REG_NAME "VIDKV"
#define VIDKV_DEVICE_NAME "VIDKV"

#define VIDKV_PROC_CONFIGURE "vidkv_configure"
#define VIDKV_PROC_STATS "vidkv_stats"

/* Sets the parameters of the KV caches created from now on, in place of the environment's. `override_or_null` wins over
 * `preset`; one of the two may be NULL, and both NULL goes back to the environment. Returns NULL, or one line that says
 * what is wrong (valid until the next call); the parameters are then as before. */
typedef const char * (*vidkv_configure_t)(const char * preset, const vidkv_params * override_or_null);

/* Spreads the parameters' bits over the layers of KV caches created from now on, by what each of them loses (vidkv/layers.h); layers
 * that are not named keep the parameters'. n 0: all have the same; so does vidkv_configure. Returns NULL, or one line. */
#define VIDKV_PROC_CONFIGURE_LAYERS "vidkv_configure_layers"
typedef const char * (*vidkv_configure_layers_t)(const vidkv_layer_loss * losses, int64_t n);

/* Sums what all live KV stores of the process hold at this moment (keys and values, all layers and contexts). Not to be
 * called while a graph is being computed. */
typedef void (*vidkv_stats_t)(vidkv_store_stats * out);

/* ---- for measuring ------------------------------------------------------------------------------------------------
 *
 * A measurement fills a cache at full precision, packs it when told, and looks at what came out. None of these functions is
 * to be called while a graph is being computed, except that the query listener is called from within one. */

/* While held (non-zero), nothing is sealed: whatever is written stays in f16. */
#define VIDKV_PROC_HOLD_SEALING "vidkv_hold_sealing"
typedef void (*vidkv_hold_sealing_t)(int hold);

/* The seconds that the process has spent packing pages so far. */
#define VIDKV_PROC_PACKING_SECONDS "vidkv_packing_seconds"
typedef double (*vidkv_packing_seconds_t)(void);

/* Seals once what is old enough in every live store, held or not. Returns NULL, or one line. */
#define VIDKV_PROC_SEAL_NOW "vidkv_seal_now"
typedef const char * (*vidkv_seal_now_t)(int threads);

/* vidkv_store_protect on every live value store: where the parameters protect a share of the tokens, these cells are it.
 * Clearing a cache forgets them, so call it after the clear and before the prefill. Returns NULL, or one line. */
#define VIDKV_PROC_PROTECT "vidkv_protect"
typedef const char * (*vidkv_protect_t)(int32_t sequence, const int64_t * cells, int64_t n);

/* One live store: the keys or the values of a layer. */
typedef struct vidkv_kv_info {
    int32_t layer;
    int32_t side;     /* vidkv_side */
    int32_t channels; /* kv_heads * head_dim */
    int32_t head_dim; /* 0: not known yet */
    vidkv_store_stats stats;
} vidkv_kv_info;

/* Told of every batch of queries: of the layer whose keys they read, q [tokens][heads][head_dim], strides in elements. */
typedef void (*vidkv_query_listener)(void * user, int32_t layer, int32_t sequence, const float * q, int64_t tokens,
                                     int32_t heads, int64_t token_stride, int64_t head_stride);

/* The live stores, numbered from 0 in the order of their creation. Functions that can fail return NULL, or one line. */
#define VIDKV_PROC_INSPECTOR "vidkv_inspector"
typedef struct vidkv_inspector {
    int32_t (*count)(void);
    const char * (*info)(int32_t store, vidkv_kv_info * out);
    /* f16 rows of cells first .. first + n - 1, dense. */
    const char * (*read)(int32_t store, int32_t sequence, int64_t first, int64_t n, uint16_t * rows);
    const char * (*write)(int32_t store, int32_t sequence, int64_t first, int64_t n, const uint16_t * rows);
    /* vidkv_store_observe_queries, q dense. */
    const char * (*observe)(int32_t store, int32_t sequence, const float * q, int64_t tokens, int32_t heads);
    /* vidkv_store_keep_open: it stays in f16. */
    const char * (*keep_open)(int32_t store);
    /* NULL: nobody listens. */
    void (*listen)(vidkv_query_listener listener, void * user);
} vidkv_inspector;
typedef const vidkv_inspector * (*vidkv_inspector_t)(void);

/* ---- saving a sequence as it is ---------------------------------------------------------------------------------
 *
 * llama_state_seq_get_data and _set_data pass through f16. A host that wants the packed pages themselves reads the state into a
 * mapping that takes no memory (mmap with MAP_NORESERVE, of llama_state_seq_get_size bytes) while the rows are left alone, keeps
 * all bytes of it but those of left_alone(), and saves the pages beside them:
 *
 *     state->rows(VIDKV_ROWS_LEFT_ON_SAVE);
 *     llama_state_seq_get_data(context, mapping, size, 0);
 *     ... the bytes between those of state->left_alone() go into a section ...
 *     const char * error = state->save(path, sections, n);
 *     state->rows(VIDKV_ROWS_AS_USUAL);
 *
 * and the other way with VIDKV_ROWS_LEFT_ON_LOAD, llama_state_seq_set_data and load(). One sequence, one thread, and nothing else
 * may be done with any context meanwhile. */
typedef struct vidkv_bytes {
    const void * data;
    uint64_t bytes;
} vidkv_bytes;

typedef struct vidkv_named_bytes {
    const char * name;
    const void * data;
    uint64_t bytes;
} vidkv_named_bytes;

enum { VIDKV_ROWS_AS_USUAL = 0, VIDKV_ROWS_LEFT_ON_SAVE = 1, VIDKV_ROWS_LEFT_ON_LOAD = 2 };

#define VIDKV_PROC_STATE "vidkv_state"
typedef struct vidkv_state {
    /* What becomes of the rows of packed caches that the host reads or writes from now on. Forgets which were left alone. */
    void (*rows)(int32_t what);
    /* Where the host has the bytes of the rows that were left alone; returns how many such pieces there are. */
    int64_t (*left_alone)(vidkv_bytes * out, int64_t most);
    /* Writes a .vidkv file (vidkv_file_create) of the sequence whose rows were left alone: pages, and how its cells lie in them
     * (section "cells"), after the sections given. Returns NULL, or one line. */
    const char * (*save)(const char * path, const vidkv_named_bytes * sections, int64_t n);
    /* Gives the cells that the host has just filled the pages of such a file; without a section "cells" they are those of one text, in
     * order. manifest: of the file that the state is of; another
     * one is refused. copy: as in vidkv_file_open. Returns NULL, or one line: the cells are then without rows, and have to be
     * removed. */
    const char * (*load)(const char * path, int32_t copy, const void * manifest, uint64_t bytes);
} vidkv_state;
typedef const vidkv_state * (*vidkv_state_t)(void);

#ifdef __cplusplus
}
#endif
#endif
