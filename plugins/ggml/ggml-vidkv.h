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

/* Sums what all live KV stores of the process hold at this moment (keys and values, all layers and contexts). Not to be
 * called while a graph is being computed. */
typedef void (*vidkv_stats_t)(vidkv_store_stats * out);

#ifdef __cplusplus
}
#endif
#endif
