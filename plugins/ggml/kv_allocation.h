// Which of the host's tensors are a KV cache, and the two buffer types: the device's default one (plain host memory, except
// that KV caches get stores) and the one of the stores.
#pragma once

#include "compat.h"
#include "vidkv/vidkv.h"

namespace vidkv_ggml {

ggml_backend_buffer_type_t default_buffer_type();
ggml_backend_buffer_type_t store_buffer_type();

// The store shape of a KV tensor [channels, cells, streams], head_dim not known.
vidkv_store_shape shape_of(const ggml_tensor * tensor);
int layer_of(const ggml_tensor * tensor);

// A KV buffer is about to be freed.
void forget_kv_buffer(ggml_backend_buffer_t buffer);

} // namespace vidkv_ggml
