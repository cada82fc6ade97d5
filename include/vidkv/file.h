/* Files of packed pages: what is needed to go on after a video or a text that was read once. C API; conventions as in vidkv.h.
 *
 * A file `.vidkv` holds sequences of stores (layer, keys or values, number of the sequence): their pages bit for bit as they are, rows that
 * are still f16, channel plans, query statistics; and *sections*: whatever else the caller needs, by name. docs/format.md has the bytes. By
 * convention "manifest" is a JSON object that says what the file is of, "tokens" are int32, "positions" int32 [tokens][4] (or [tokens][1]), and
 * "cells" says where an engine had its cells.
 *
 * Writing goes to PATH.part, which takes the place of PATH when it is whole and on disk: what was at PATH stays until then, whatever
 * happens. Two writers of one PATH: the second is refused. An open file is mapped, and its sealed pages are read where they lie, by all
 * stores and processes that load it; it must not be changed in place (saving again is no such change).
 */
#ifndef VIDKV_FILE_H
#define VIDKV_FILE_H

#include "vidkv/vidkv.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- writing -------------------------------------------------------------------------------------------------------- */

typedef struct vidkv_file_writer vidkv_file_writer;

/* All stores of a file have these parameters; residual_length may differ. */
VIDKV_API vidkv_status vidkv_file_create_sized(const char * path, const vidkv_params * params, size_t params_size,
                                               vidkv_file_writer ** out);
static inline vidkv_status vidkv_file_create(const char * path, const vidkv_params * params, vidkv_file_writer ** out) {
    return vidkv_file_create_sized(path, params, sizeof(*params), out);
}

/* name: 1 to 31 of a-z 0-9 . _ -, each once. data may be NULL where there are no bytes. */
VIDKV_API vidkv_status vidkv_file_add_section(vidkv_file_writer * writer, const char * name, const void * data,
                                              uint64_t bytes);

/* A sequence of a store, as the keys or values of `layer` in sequence `as` of the file. pages: these, in this order, which become pages
 * 0 .. n_pages - 1; NULL: all that hold something, at their own numbers. */
VIDKV_API vidkv_status vidkv_file_add_store(vidkv_file_writer * writer, int32_t layer, int32_t as,
                                            const vidkv_store * store, int32_t sequence, const int64_t * pages,
                                            int64_t n_pages);

/* The same for all layers of a cache. */
VIDKV_API vidkv_status vidkv_file_add_cache(vidkv_file_writer * writer, int32_t as, const vidkv_cache * cache,
                                            int32_t sequence);

/* Brings the file to its place. Nothing more can be added after it; vidkv_file_abandon is still to be called. */
VIDKV_API vidkv_status vidkv_file_finish(vidkv_file_writer * writer);

/* Frees the writer. A file that is not finished leaves nothing behind. */
VIDKV_API void vidkv_file_abandon(vidkv_file_writer * writer);

/* ---- reading -------------------------------------------------------------------------------------------------------- */

typedef struct vidkv_file vidkv_file;

/* Checks all of the file but its pages: milliseconds, whatever its size. A sealed page is checked when it is first read or attended to, so
 * that no forged one leads outside of it (VIDKV_E_FORMAT then); vidkv_file_verify looks at them all. copies, non-zero: reads the file
 * into memory instead of mapping it, for file systems that cannot map, or files that others change in place. */
VIDKV_API vidkv_status vidkv_file_open(const char * path, int32_t copies, vidkv_file ** out);

/* Stores that were filled from it keep what they need. */
VIDKV_API void vidkv_file_close(vidkv_file * file);

/* Reads all of it: the checksum of every range, the structure of every page, zeros in between. */
VIDKV_API vidkv_status vidkv_file_verify(const vidkv_file * file, int32_t threads);

/* The bytes of a section, at an address that is a multiple of 64; NULL if there is none. Valid until the file is closed. */
VIDKV_API const void * vidkv_file_section(const vidkv_file * file, const char * name, uint64_t * bytes);
/* The names in the order of writing; NULL past the end. */
VIDKV_API const char * vidkv_file_section_name(const vidkv_file * file, int64_t index);

typedef struct vidkv_file_info {
    vidkv_params params;
    int32_t layers, sequences; /* one more than the highest number */
    int64_t stores;            /* for vidkv_file_get_store */
    uint64_t bytes;            /* of the file */
} vidkv_file_info;
VIDKV_API void vidkv_file_get_info_sized(const vidkv_file * file, vidkv_file_info * out, size_t info_size);
static inline void vidkv_file_get_info(const vidkv_file * file, vidkv_file_info * out) {
    vidkv_file_get_info_sized(file, out, sizeof(*out));
}

typedef struct vidkv_file_store_info {
    int32_t layer, side, sequence; /* side: vidkv_side */
    int32_t channels, head_dim;
    int64_t pages; /* one more than the highest page number: what vidkv_file_load needs places for */
    int64_t cells; /* one more than the last cell written */
    int64_t cells_written, pages_sealed;
    uint64_t bytes; /* its pages and what describes them */
    float bits;     /* key_bits or value_bits, which may differ from layer to layer (vidkv/layers.h) */
} vidkv_file_store_info;
VIDKV_API vidkv_status vidkv_file_get_store_sized(const vidkv_file * file, int64_t index, vidkv_file_store_info * out,
                                                  size_t info_size);
static inline vidkv_status vidkv_file_get_store(const vidkv_file * file, int64_t index, vidkv_file_store_info * out) {
    return vidkv_file_get_store_sized(file, index, out, sizeof(*out));
}

/* Fills a sequence of a store (keys or values, as the store is) with `layer` and sequence `from` of the file. Nothing is packed again, so attention
 * gives the same bits. The store has the file's parameters (residual_length may differ), channels and head_dim (0: it is set from the file), and
 * room for the cells.
 * places NULL: the sequence is cleared first and then holds what was saved, page for page.
 * places given, n_places of them: page i of the file becomes page places[i], which must be empty; all other pages stay. Each page keeps the
 * channel plan that it was packed with, and begins a text (vidkv_store_begin) if it did. Query statistics are taken over
 * where the sequence has none.
 * On failure the store is as it was. */
VIDKV_API vidkv_status vidkv_file_load(const vidkv_file * file, int32_t layer, int32_t from, vidkv_store * store,
                                       int32_t sequence, const int64_t * places, int64_t n_places);

/* All layers of a sequence; the cache's other sequences stay. On failure the cache is as it was. */
VIDKV_API vidkv_status vidkv_file_load_cache(const vidkv_file * file, int32_t from, vidkv_cache * cache, int32_t sequence);

#ifdef __cplusplus
}
#endif
#endif
