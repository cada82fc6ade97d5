/* Attention on packed codes with an NVIDIA GPU: libvidkv_cuda. Pages, rows, queries and results are in device memory; nothing waits for the
 * device once the first call on it has returned. Trellis codes on both sides (t1.65 and its kin), without protected tokens, head_dim 64 or 128. */
#ifndef VIDKV_CUDA_H
#define VIDKV_CUDA_H

#include "vidkv/vidkv.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Beside those of vidkv_status. */
#define VIDKV_E_UNSUPPORTED ((vidkv_status)5) /* not with these kernels: another device, preset or shape */
#define VIDKV_E_CUDA ((vidkv_status)6)        /* the device or its driver failed */

typedef enum vidkv_cuda_number { VIDKV_CUDA_F32 = 0, VIDKV_CUDA_F16 = 1, VIDKV_CUDA_BF16 = 2 } vidkv_cuda_number;

/* f16 rows of all KV heads; 16-byte aligned, strides in elements. NULL: there are none. */
typedef struct vidkv_cuda_rows {
    const uint16_t * rows;
    int64_t head_stride, row_stride;
} vidkv_cuda_rows;

/* Cells of a sequence: whole sealed pages (vidkv_store_sealed_page), then f16 rows. */
typedef struct vidkv_cuda_sequence {
    const uint8_t * const * key_pages; /* device: [pages] addresses in device memory, multiples of 16 */
    const uint8_t * const * value_pages;
    const int16_t * order;                  /* [kv_heads][head_dim] vidkv_store_channel_plan; where there are pages */
    const float * means;                    /* likewise, as f32 */
    vidkv_cuda_rows key_sinks, value_sinks; /* cells 0 .. sinks - 1, exact; where there are pages */
    vidkv_cuda_rows keys, values;           /* cells 128 pages .. cells - 1 */
    int64_t pages, cells;
    int32_t sinks;
} vidkv_cuda_sequence;

typedef struct vidkv_cuda_attention_args {
    vidkv_params params;
    int32_t head_dim, kv_heads, heads;
    int32_t sequences;
    const vidkv_cuda_sequence * sequence;                     /* host: [sequences] */
    const void * q;                                           /* [sequences][tokens][heads][head_dim] */
    int64_t q_sequence_stride, q_token_stride, q_head_stride; /* in elements */
    void * out;
    int64_t out_sequence_stride, out_token_stride, out_head_stride;
    int32_t q_number, out_number; /* vidkv_cuda_number */
    int32_t tokens;
    const uint16_t * mask; /* f16 [tokens][cells], for every sequence; as in vidkv_attention_args, and so the rest */
    int64_t mask_stride;
    int32_t causal;
    float scale, softcap;
    const float * sinks;
    void * workspace; /* at least vidkv_cuda_workspace bytes, zeros before its first use; one stream at a time uses it */
    uint64_t workspace_bytes;
} vidkv_cuda_attention_args;

/* VIDKV_OK if the calling thread's device can run the kernels and they can read such pages; else vidkv_cuda_last_error says why not. */
VIDKV_API vidkv_status vidkv_cuda_supports(const vidkv_params * params, int32_t head_dim);

/* Bytes of workspace that attention needs; 0: the arguments are wrong. */
VIDKV_API uint64_t vidkv_cuda_workspace(const vidkv_cuda_attention_args * args);

/* stream: a cudaStream_t. The first call on a device waits for it, later ones do not. */
VIDKV_API vidkv_status vidkv_cuda_attention(const vidkv_cuda_attention_args * args, void * stream);

/* What went wrong in this thread's last call that failed. */
VIDKV_API const char * vidkv_cuda_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
