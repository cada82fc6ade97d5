// C++ over vidkv.h: owners that free themselves, and errors as exceptions. Header only.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "vidkv/vidkv.h"

namespace vidkv {

class Error : public std::runtime_error {
  public:
    explicit Error(vidkv_status status) : std::runtime_error(vidkv_last_error()), status_(status) {}
    vidkv_status status() const { return status_; }

  private:
    vidkv_status status_;
};

inline void check(vidkv_status status) {
    if (status != VIDKV_OK) throw Error(status);
}

// Throws Error if there is no such preset.
inline vidkv_params preset(const std::string & name) {
    vidkv_params params;
    check(vidkv_params_from_preset(name.c_str(), &params));
    return params;
}

// All layers; shapes, units and errors as at the functions of vidkv.h.
class CacheHandle {
  public:
    CacheHandle(const vidkv_cache_shape & shape, const vidkv_params & params) {
        vidkv_cache * cache = nullptr;
        check(vidkv_cache_create(&shape, &params, &cache));
        cache_.reset(cache);
    }

    void append(int32_t layer, int32_t sequence, int64_t n, const float * k, const float * v) {
        check(vidkv_cache_append(cache_.get(), layer, sequence, n, k, v));
    }
    int64_t length(int32_t layer, int32_t sequence) const { return vidkv_cache_length(cache_.get(), layer, sequence); }
    void attend(int32_t layer, const vidkv_attention_args & args) {
        check(vidkv_attention(vidkv_cache_keys(cache_.get(), layer), vidkv_cache_values(cache_.get(), layer), &args));
    }
    void seal(int32_t threads) { check(vidkv_cache_seal(cache_.get(), threads)); }
    void truncate(int32_t sequence, int64_t length) { check(vidkv_cache_truncate(cache_.get(), sequence, length)); }
    void copy_sequence(int32_t from, int32_t to) { check(vidkv_cache_copy_sequence(cache_.get(), from, to)); }
    void clear() { vidkv_cache_clear(cache_.get()); }
    void save(const std::string & path) const { check(vidkv_cache_save(cache_.get(), path.c_str())); }
    void load(const std::string & path) { check(vidkv_cache_load(cache_.get(), path.c_str())); }
    vidkv_store_stats stats() const {
        vidkv_store_stats stats;
        vidkv_cache_get_stats(cache_.get(), &stats);
        return stats;
    }
    vidkv_cache * get() const { return cache_.get(); }

  private:
    struct Free {
        void operator()(vidkv_cache * cache) const { vidkv_cache_free(cache); }
    };
    std::unique_ptr<vidkv_cache, Free> cache_;
};

} // namespace vidkv
