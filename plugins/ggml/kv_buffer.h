// The ggml buffer behind a KV cache: addresses for the host to compute with, and one store per tensor that holds the data.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "compat.h"
#include "kv_store.h"
#include "placement.h"
#include "settings.h"

namespace vidkv_ggml {

class KvBuffer {
  public:
    // Reserves `size` bytes of addresses (no memory behind them). Throws std::bad_alloc.
    KvBuffer(size_t size, const CacheSettings & settings, bool sliding_window);
    ~KvBuffer();
    KvBuffer(const KvBuffer &) = delete;
    KvBuffer & operator=(const KvBuffer &) = delete;

    uint8_t * base() const { return base_; }

    // Gives a KV tensor, whose data must lie within the addresses, its store. False if there is no memory for it (logged).
    bool attach(ggml_tensor * tensor);

    // Tells the store of a KV tensor its head_dim; false, with vidkv_last_error() set, if the codec cannot take it.
    // Once all stores know theirs, says in one line what the cache will hold.
    bool set_head_dim(KvStore & store, int head_dim);

    // Puts real memory behind the addresses, with what the stores hold, and drops the stores. False: no memory.
    bool make_plain();

    void clear(uint8_t value);

  private:
    void announce() const;

    uint8_t * base_ = nullptr;
    size_t size_;
    CacheSettings settings_;
    bool sliding_window_;
    bool announced_ = false;
    std::unique_ptr<Placement> placement_; // none for a sliding window, whose cells recycle, and none when plain
    std::vector<ggml_tensor *> tensors_;
    std::vector<std::unique_ptr<KvStore>> stores_; // one per tensor; empty when plain
};

// Wraps a KvBuffer for ggml, which owns it from then on. reported_size is what the host sees as the buffer's size.
ggml_backend_buffer_t wrap(std::unique_ptr<KvBuffer> buffer, size_t reported_size);

// The store behind a tensor or a view of it; null if the tensor lies elsewhere.
KvStore * store_of(const ggml_tensor * tensor);

// store_of(tensor) must not be null. See KvBuffer.
bool set_head_dim(const ggml_tensor * tensor, int head_dim);

// From now on the cache of this tensor is ordinary host memory, at the same addresses, which every back-end can use. Logs
// why, in one line. False: no memory (logged).
bool make_plain(const ggml_tensor * tensor, const std::string & why);

// Threads that may seal outside of a graph.
void set_seal_threads(int threads);

} // namespace vidkv_ggml
