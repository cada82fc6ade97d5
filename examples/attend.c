/* Attention over a packed KV cache, with VidKV's C library alone.
 *
 *     cc attend.c $(pkg-config --cflags --libs vidkv) -o attend && ./attend
 *
 * One layer of 2 KV heads, read by 4 query heads: 1,000 tokens are appended and packed, then one query attends to all of
 * them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "vidkv/vidkv.h"

enum { TOKENS = 1000, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, CHANNELS = KV_HEADS * HEAD_DIM };

static float keys[TOKENS * CHANNELS], values[TOKENS * CHANNELS], query[HEADS * HEAD_DIM], output[HEADS * HEAD_DIM];

static void check(vidkv_status status) {
    if (status == VIDKV_OK) return;
    fprintf(stderr, "attend: %s\n", vidkv_last_error());
    exit(1);
}

static void fill(float * numbers, int n) {
    for (int i = 0; i < n; ++i) numbers[i] = (float)rand() / (float)RAND_MAX - 0.5f;
}

int main(int argc, char ** argv) {
    vidkv_params params;
    check(vidkv_params_from_preset(argc > 1 ? argv[1] : "t1.65", &params));
    const vidkv_cache_shape shape = {
        .layers = 1, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM, .cells = 4096, .sequences = 1};
    vidkv_cache * cache;
    check(vidkv_cache_create(&shape, &params, &cache));

    fill(keys, TOKENS * CHANNELS);
    fill(values, TOKENS * CHANNELS);
    fill(query, HEADS * HEAD_DIM);
    check(vidkv_cache_append(cache, 0, 0, TOKENS, keys, values));
    check(vidkv_cache_observe_queries(cache, 0, 0, query, 1, HEADS)); /* t presets give bits to what the queries look at */
    check(vidkv_cache_seal(cache, 1));                                /* packs what is older than the newest 128 tokens */

    const vidkv_attention_args args = {.sequence = 0,
                                       .cells = TOKENS,
                                       .q = query,
                                       .tokens = 1,
                                       .heads = HEADS,
                                       .q_token_stride = HEADS * HEAD_DIM,
                                       .q_head_stride = HEAD_DIM,
                                       .out = output,
                                       .out_token_stride = HEADS * HEAD_DIM,
                                       .out_head_stride = HEAD_DIM,
                                       .scale = 1.0f / sqrtf(HEAD_DIM),
                                       .threads = 1};
    check(vidkv_attention(vidkv_cache_keys(cache, 0), vidkv_cache_values(cache, 0), &args));

    vidkv_store_stats stats;
    vidkv_cache_get_stats(cache, &stats);
    printf("%lld of %d tokens packed: %llu bytes held, %llu in f16\n", (long long)stats.cells_sealed / 2, TOKENS,
           (unsigned long long)stats.bytes, (unsigned long long)stats.bytes_f16);
    printf("head 0 attends to %g %g %g %g ...\n", output[0], output[1], output[2], output[3]);
    vidkv_cache_free(cache);
    return 0;
}
