// The functions of ggml-vidkv.h, as a host asks the registry for them.
#pragma once

#include <cstdint>

namespace vidkv_ggml {

class KvStore;

// Null for an unknown name.
void * host_function(const char * name);

// Passes queries on to whoever listens (vidkv_inspector.listen).
void tell_queries(const KvStore & keys, int stream, const float * q, int64_t tokens, int heads, int64_t token_stride,
                  int64_t head_stride);

} // namespace vidkv_ggml
