// A stack of layers, each with a key store and a value store.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cache/store.h"

namespace vidkv {

class FileReader;
class FileWriter;

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

    // All sequences; one of them as one of a file. A load that fails leaves the cache as it was, and its stores stay the same objects.
    vidkv_status save(const char * path) const;
    vidkv_status load(const char * path);
    vidkv_status save_sequence(FileWriter & file, int as, int sequence) const;
    vidkv_status load_sequence(const FileReader & file, int from, int sequence);

  private:
    struct Layer {
        std::unique_ptr<Store> keys, values;
        std::vector<int64_t> lengths; // cells appended to each sequence
    };
    std::vector<Layer> make_layers() const;
    vidkv_status check_file(const FileReader & file) const;
    vidkv_status load_into(std::vector<Layer> & layers, const FileReader & file, int from, int sequence) const;
    void take(std::vector<Layer> & layers) noexcept;

    vidkv_cache_shape shape_;
    vidkv_params params_;
    std::vector<Layer> layers_;
};

} // namespace vidkv
