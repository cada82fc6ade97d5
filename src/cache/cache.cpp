#include "cache/cache.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace vidkv {

Cache::Cache(const vidkv_cache_shape & shape, const vidkv_params & params)
    : shape_(shape), params_(params), layers_(make_layers()) {}

std::vector<Cache::Layer> Cache::make_layers() const {
    const int32_t channels = shape_.kv_heads * shape_.head_dim;
    std::vector<Layer> layers(static_cast<size_t>(shape_.layers));
    for (Layer & layer : layers) {
        const auto store = [&](vidkv_side side) {
            return std::make_unique<Store>(
                vidkv_store_shape{side, channels, shape_.head_dim, shape_.cells, shape_.sequences}, params_);
        };
        layer.keys = store(VIDKV_KEYS);
        layer.values = store(VIDKV_VALUES);
        layer.lengths.assign(static_cast<size_t>(shape_.sequences), 0);
    }
    return layers;
}

vidkv_status Cache::append(int layer, int sequence, int64_t n, const float * k, const float * v) {
    if (layer < 0 || layer >= shape_.layers || sequence < 0 || sequence >= shape_.sequences || n < 0) {
        return fail(VIDKV_E_ARGUMENT, "no such layer or sequence in the cache");
    }
    Layer & target = layers_[layer];
    int64_t & length = target.lengths[sequence];
    if (n > shape_.cells - length) {
        return fail(VIDKV_E_ARGUMENT, "the cache is full: " + std::to_string(length) + " of " +
                                          std::to_string(shape_.cells) + " cells are taken, " + std::to_string(n) +
                                          " more are wanted");
    }
    std::vector<int64_t> cells(static_cast<size_t>(n));
    std::iota(cells.begin(), cells.end(), length);
    const int64_t stride = target.keys->channels();
    for (Store * store : {target.keys.get(), target.values.get()}) { // both or neither
        if (vidkv_status status = store->make_room(sequence, cells.data(), n)) return status;
    }
    if (vidkv_status status = target.keys->write(sequence, cells.data(), n, k, stride)) return status;
    if (vidkv_status status = target.values->write(sequence, cells.data(), n, v, stride)) return status;
    length += n;
    return VIDKV_OK;
}

vidkv_status Cache::seal(int threads) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
    for (Layer & layer : layers_) {
        if (params_.protect > 0.0f) {
            if (vidkv_status status = layer.values->protect_by_queries(*layer.keys, scale)) return status;
        }
        if (vidkv_status status = layer.keys->seal(threads)) return status;
        if (vidkv_status status = layer.values->seal(threads)) return status;
    }
    return VIDKV_OK;
}

vidkv_status Cache::observe_queries(int layer, int sequence, const float * q, int64_t tokens, int heads) {
    if (layer < 0 || layer >= shape_.layers) return fail(VIDKV_E_ARGUMENT, "no such layer in the cache");
    const int64_t head_dim = shape_.head_dim;
    return layers_[layer].keys->observe_queries(sequence, q, tokens, heads, heads * head_dim, head_dim);
}

vidkv_status Cache::protect(int sequence, const int64_t * cells, int64_t n) {
    for (Layer & layer : layers_) {
        if (vidkv_status status = layer.values->protect(sequence, cells, n)) return status;
    }
    return VIDKV_OK;
}

vidkv_status Cache::truncate(int sequence, int64_t length) {
    for (Layer & layer : layers_) {
        if (vidkv_status status = layer.keys->truncate(sequence, length)) return status;
        if (vidkv_status status = layer.values->truncate(sequence, length)) return status;
        layer.lengths[sequence] = std::min(layer.lengths[sequence], length);
    }
    return VIDKV_OK;
}

vidkv_status Cache::copy_sequence(int from, int to) {
    for (Layer & layer : layers_) {
        if (vidkv_status status = layer.keys->copy_sequence(from, to)) return status;
        if (vidkv_status status = layer.values->copy_sequence(from, to)) return status;
        layer.lengths[to] = layer.lengths[from];
    }
    return VIDKV_OK;
}

void Cache::clear() {
    for (Layer & layer : layers_) {
        layer.keys->clear();
        layer.values->clear();
        std::fill(layer.lengths.begin(), layer.lengths.end(), 0);
    }
}

vidkv_store_stats Cache::stats() const {
    vidkv_store_stats sum{};
    for (const Layer & layer : layers_) {
        for (const Store * store : {layer.keys.get(), layer.values.get()}) {
            const vidkv_store_stats part = store->stats();
            sum.bytes += part.bytes;
            sum.bytes_f16 += part.bytes_f16;
            sum.bytes_planned += part.bytes_planned;
            sum.sealed_bytes += part.sealed_bytes;
            sum.cells_written += part.cells_written;
            sum.cells_sealed += part.cells_sealed;
            sum.pages_reopened += part.pages_reopened;
        }
    }
    return sum;
}

} // namespace vidkv
