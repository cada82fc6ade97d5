// One sequence of a host in a file and back, pages as they are: the host's own state has the cells, and the rows of a packed
// cache are left alone.
#pragma once

#include <cstddef>

namespace vidkv_ggml {

class KvStore;

// What get_tensor and set_tensor do with whole rows of packed caches. False: the usual.
bool note_read(const KvStore & store, size_t offset, size_t size, const void * data);
bool note_write(const KvStore & store, size_t offset, size_t size, const void * data);

// vidkv_state of ggml-vidkv.h.
void * state_functions();

} // namespace vidkv_ggml
