// Owners of a vidkv_store and a vidkv_cache with Python's arrays at their edges.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"

namespace vidkv::python {

// Python's threads on one store or cache: who writes is alone, readers go together. A lock is waited for without the GIL, which its
// holder may need to finish.
template <typename Lock, typename Work> auto alone(Lock lock, Work work) {
    const nb::gil_scoped_release release;
    Lock held(std::move(lock)); // let go before the GIL is waited for
    held.lock();
    return work();
}
// Two at once, so that two threads that ask for the same two do not wait for each other.
template <typename First, typename Second> struct Both {
    First first;
    Second second;
    void lock() { std::lock(first, second); }
};
template <typename First, typename Second> Both(First, Second) -> Both<First, Second>;
inline std::unique_lock<std::shared_mutex> to_write(std::shared_mutex & mutex) { return {mutex, std::defer_lock}; }
inline std::shared_lock<std::shared_mutex> to_read(std::shared_mutex & mutex) { return {mutex, std::defer_lock}; }

class StoreHandle {
  public:
    StoreHandle(const std::string & side, int channels, int head_dim, const vidkv_params & params, int64_t cells,
                int sequences);

    void write(int sequence, int64_t first_cell, const ConstArray & rows);
    void read(int sequence, int64_t first_cell, const Array & out) const;
    void observe_queries(int sequence, const ConstArray & q);
    void protect(int sequence, const std::vector<int64_t> & cells);
    void protect_by_queries(const StoreHandle & keys, float scale);
    void seal(int threads);
    void keep_open();
    void truncate(int sequence, int64_t first_cell);
    void copy_sequence(int from, int to);
    void resize(int64_t cells, int sequences);
    std::unique_ptr<StoreHandle> clone() const;
    nb::object sealed_page(int sequence, int64_t page) const;
    nb::tuple channel_plan(int sequence) const;
    void release_page(int sequence, int64_t page);
    void clear();
    vidkv_store_stats stats() const;

    template <typename Work> void change(Work work) {
        check(alone(to_write(mutex_), [&] { return work(store_.get()); }));
    }
    const vidkv_store * get() const { return store_.get(); }
    std::shared_mutex & mutex() const { return mutex_; }
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
    mutable std::shared_mutex mutex_;
};

void attention(const StoreHandle & keys, const StoreHandle & values, const ConstArray & q, const Array & out, int64_t cells,
               int sequence, const std::optional<ConstArray> & mask, bool causal, float scale, float softcap,
               const std::optional<ConstArray> & sinks, int threads);

class Cache {
  public:
    Cache(int layers, int kv_heads, int head_dim, int64_t cells, const vidkv_params & params, int sequences);

    void append(int layer, int sequence, const ConstArray & keys, const ConstArray & values);
    int64_t length(int layer, int sequence) const;
    void observe_queries(int layer, int sequence, const ConstArray & q);
    void protect(int sequence, const std::vector<int64_t> & cells);
    void seal(int threads);
    void read(int layer, const std::string & side, int sequence, int64_t first_cell, const Array & out);
    void attend(int layer, const ConstArray & q, const Array & out, int sequence, bool causal, std::optional<float> scale,
                int threads);
    void truncate(int sequence, int64_t length);
    void copy_sequence(int from, int to);
    void clear();
    void save(const std::string & path) const;
    void load(const std::string & path);
    vidkv_store_stats stats() const;

  private:
    struct Free {
        void operator()(vidkv_cache * cache) const { vidkv_cache_free(cache); }
    };
    void require_layer(int layer) const;
    void require_tokens(const ConstArray & a, const char * name) const;
    template <typename Work> void change(Work work) {
        check(alone(to_write(mutex_), [&] { return work(cache_.get()); }));
    }

    std::unique_ptr<vidkv_cache, Free> cache_;
    int layers_;
    size_t kv_heads_, head_dim_;
    mutable std::shared_mutex mutex_;
};

} // namespace vidkv::python
