// A stack of layers, each with a key store and a value store, and the file that it is saved to.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cache/store.h"

namespace vidkv {

class Cache {
  public:
    Cache(const vidkv_cache_shape & shape, const vidkv_params & params);

    const vidkv_cache_shape & shape() const { return shape_; }
    Store & keys(int layer) { return *layers_[layer].keys; }
    Store & values(int layer) { return *layers_[layer].values; }
    int64_t length(int layer, int sequence) const { return layers_[layer].lengths[sequence]; }

    // k, v: f32 [n][kv_heads][head_dim], appended at the layer's length.
    vidkv_status append(int layer, int sequence, int64_t n, const float * k, const float * v);
    vidkv_status observe_queries(int layer, int sequence, const float * q, int64_t tokens, int heads);
    vidkv_status protect(int sequence, const int64_t * cells, int64_t n);
    vidkv_status seal(int threads);
    vidkv_status truncate(int sequence, int64_t length);
    vidkv_status copy_sequence(int from, int to);
    void clear();
    vidkv_store_stats stats() const;

    vidkv_status save(const char * path) const;
    vidkv_status load(const char * path);

  private:
    struct Layer {
        std::unique_ptr<Store> keys, values;
        std::vector<int64_t> lengths; // cells appended to each sequence
    };
    std::vector<Layer> make_layers() const;
    std::vector<uint8_t> header() const; // of the file: what must agree for a load

    vidkv_cache_shape shape_;
    vidkv_params params_;
    std::vector<Layer> layers_;
};

} // namespace vidkv
