// Owners of a vidkv_store and a vidkv_cache with Python's arrays at their edges.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "arrays.h"

namespace vidkv::python {

class StoreHandle {
  public:
    StoreHandle(const std::string & side, int channels, int head_dim, const vidkv_params & params, int64_t cells,
                int sequences);

    void write(int sequence, int64_t first_cell, const ConstArray & rows);
    void read(int sequence, int64_t first_cell, const Array & out) const;
    void observe_queries(int sequence, const ConstArray & q);
    void protect(int sequence, const std::vector<int64_t> & cells);
    void protect_by_queries(const StoreHandle & keys, float scale);
    void seal(int threads); // called without the GIL: failures are thrown as C++ exceptions
    void keep_open() { vidkv_store_keep_open(store_.get()); }
    void truncate(int sequence, int64_t first_cell) { check(vidkv_store_truncate(store_.get(), sequence, first_cell)); }
    void copy_sequence(int from, int to) { check(vidkv_store_copy_sequence(store_.get(), from, to)); }
    void resize(int64_t cells, int sequences) { check(vidkv_store_resize(store_.get(), cells, sequences)); }
    std::unique_ptr<StoreHandle> clone() const;
    nb::object sealed_page(int sequence, int64_t page) const;
    nb::tuple channel_plan(int sequence) const;
    void release_page(int sequence, int64_t page) { check(vidkv_store_release_page(store_.get(), sequence, page)); }
    void clear() { vidkv_store_clear(store_.get()); }
    vidkv_store_stats stats() const;

    const vidkv_store * get() const { return store_.get(); }
    size_t channels() const { return channels_; }
    size_t head_dim() const { return head_dim_; }

  private:
    struct Free {
        void operator()(vidkv_store * store) const { vidkv_store_free(store); }
    };
    StoreHandle(vidkv_store * store, size_t channels, size_t head_dim)
        : store_(store), channels_(channels), head_dim_(head_dim) {}

    std::unique_ptr<vidkv_store, Free> store_;
    size_t channels_, head_dim_;
};

void attention(const StoreHandle & keys, const StoreHandle & values, const ConstArray & q, const Array & out, int64_t cells,
               int sequence, const std::optional<ConstArray> & mask, bool causal, float scale, float softcap,
               const std::optional<ConstArray> & sinks, int threads);

class Cache {
  public:
    Cache(int layers, int kv_heads, int head_dim, int64_t cells, const vidkv_params & params, int sequences);

    void append(int layer, int sequence, const ConstArray & keys, const ConstArray & values);
    int64_t length(int layer, int sequence) const { return vidkv_cache_length(cache_.get(), layer, sequence); }
    void observe_queries(int layer, int sequence, const ConstArray & q);
    void protect(int sequence, const std::vector<int64_t> & cells);
    void seal(int threads);
    void read(int layer, const std::string & side, int sequence, int64_t first_cell, const Array & out);
    void attend(int layer, const ConstArray & q, const Array & out, int sequence, bool causal, std::optional<float> scale,
                int threads);
    void truncate(int sequence, int64_t length) { check(vidkv_cache_truncate(cache_.get(), sequence, length)); }
    void copy_sequence(int from, int to) { check(vidkv_cache_copy_sequence(cache_.get(), from, to)); }
    void clear() { vidkv_cache_clear(cache_.get()); }
    void save(const std::string & path) const { check(vidkv_cache_save(cache_.get(), path.c_str())); }
    void load(const std::string & path) { check(vidkv_cache_load(cache_.get(), path.c_str())); }
    vidkv_store_stats stats() const;

  private:
    struct Free {
        void operator()(vidkv_cache * cache) const { vidkv_cache_free(cache); }
    };
    vidkv_store * store(int layer, vidkv_side side) const;
    void require_tokens(const ConstArray & a, const char * name) const;

    std::unique_ptr<vidkv_cache, Free> cache_;
    size_t kv_heads_, head_dim_;
};

} // namespace vidkv::python
