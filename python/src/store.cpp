#include "store.h"

#include <cmath>
#include <numeric>

namespace vidkv::python {

namespace {

void require_heads(const ConstArray & q, const char * name) {
    require(is_f32(q), std::string(name) + " must be float32");
    require_rows(q, name, 3);
}

void require_out(const Array & out, size_t channels) {
    require(is_f16(out) && out.ndim() == 2 && is_dense(out), "out must be a contiguous float16 array [n, channels]");
    require(out.shape(1) == channels,
            "out must have " + std::to_string(channels) + " channels, not " + std::to_string(out.shape(1)));
}

vidkv_status read_rows(const vidkv_store * store, int sequence, int64_t first_cell, const Array & out) {
    return vidkv_store_read_f16(store, sequence, first_cell, static_cast<int64_t>(out.shape(0)),
                                static_cast<uint16_t *>(out.data()));
}

vidkv_status write_rows(vidkv_store * store, int sequence, const std::vector<int64_t> & cells, const ConstArray & rows) {
    const auto n = static_cast<int64_t>(cells.size());
    const int64_t stride = rows.stride(0);
    if (is_f32(rows))
        return vidkv_store_write_f32(store, sequence, cells.data(), n, static_cast<const float *>(rows.data()), stride);
    return vidkv_store_write_f16(store, sequence, cells.data(), n, static_cast<const uint16_t *>(rows.data()), stride);
}

} // namespace

StoreHandle::StoreHandle(const std::string & side, int channels, int head_dim, const vidkv_params & params, int64_t cells,
                         int sequences)
    : channels_(static_cast<size_t>(channels)), head_dim_(static_cast<size_t>(head_dim)) {
    require(head_dim > 0, "head_dim must be a multiple of 8 from 8 to 512, not " + std::to_string(head_dim));
    const vidkv_store_shape shape{side_from(side), channels, head_dim, cells, sequences};
    vidkv_store * store = nullptr;
    check(vidkv_store_create(&shape, &params, &store));
    store_.reset(store);
}

void StoreHandle::write(int sequence, int64_t first_cell, const ConstArray & rows) {
    require_rows(rows, "rows", 2);
    require(rows.shape(1) == channels_,
            "rows must have " + std::to_string(channels_) + " channels, not " + std::to_string(rows.shape(1)));
    require(is_f32(rows) || is_f16(rows), "rows must be float32 or float16");
    const auto n = static_cast<int64_t>(rows.shape(0));
    if (n == 0) return;
    std::vector<int64_t> cells(static_cast<size_t>(n));
    std::iota(cells.begin(), cells.end(), first_cell);
    change([&](vidkv_store * store) { return write_rows(store, sequence, cells, rows); });
}

void StoreHandle::read(int sequence, int64_t first_cell, const Array & out) const {
    require_out(out, channels_);
    check(alone(to_read(mutex_), [&] { return read_rows(store_.get(), sequence, first_cell, out); }));
}

void StoreHandle::observe_queries(int sequence, const ConstArray & q) {
    require_heads(q, "q");
    require(q.shape(2) == head_dim_,
            "q must have a head_dim of " + std::to_string(head_dim_) + ", not " + std::to_string(q.shape(2)));
    const auto tokens = static_cast<int64_t>(q.shape(0));
    const auto heads = static_cast<int32_t>(q.shape(1));
    change([&](vidkv_store * store) {
        return vidkv_store_observe_queries(store, sequence, static_cast<const float *>(q.data()), tokens, heads,
                                           q.stride(0), q.stride(1));
    });
}

void StoreHandle::protect(int sequence, const std::vector<int64_t> & cells) {
    if (cells.empty()) return;
    change([&](vidkv_store * store) {
        return vidkv_store_protect(store, sequence, cells.data(), static_cast<int64_t>(cells.size()));
    });
}

void StoreHandle::protect_by_queries(const StoreHandle & keys, float scale) {
    require(this != &keys, "protection by queries needs the values and the keys of one layer");
    check(alone(Both{to_write(mutex_), to_read(keys.mutex_)},
                [&] { return vidkv_store_protect_by_queries(store_.get(), keys.get(), scale); }));
}

void StoreHandle::seal(int threads) {
    change([&](vidkv_store * store) { return vidkv_store_seal(store, threads); });
}
void StoreHandle::keep_open() {
    change([](vidkv_store * store) { return vidkv_store_keep_open(store), VIDKV_OK; });
}
void StoreHandle::truncate(int sequence, int64_t first_cell) {
    change([&](vidkv_store * store) { return vidkv_store_truncate(store, sequence, first_cell); });
}
void StoreHandle::copy_sequence(int from, int to) {
    change([&](vidkv_store * store) { return vidkv_store_copy_sequence(store, from, to); });
}
void StoreHandle::resize(int64_t cells, int sequences) {
    change([&](vidkv_store * store) { return vidkv_store_resize(store, cells, sequences); });
}
void StoreHandle::release_page(int sequence, int64_t page) {
    change([&](vidkv_store * store) { return vidkv_store_release_page(store, sequence, page); });
}
void StoreHandle::clear() {
    change([](vidkv_store * store) { return vidkv_store_clear(store), VIDKV_OK; });
}

std::unique_ptr<StoreHandle> StoreHandle::clone() const {
    vidkv_store * copy = nullptr;
    check(alone(to_read(mutex_), [&] { return vidkv_store_clone(store_.get(), &copy); }));
    return std::unique_ptr<StoreHandle>(new StoreHandle(copy, channels_, head_dim_));
}

nb::object StoreHandle::sealed_page(int sequence, int64_t page) const {
    std::vector<uint8_t> copy;
    const bool sealed = alone(to_read(mutex_), [&] {
        uint64_t bytes = 0;
        const uint8_t * data = vidkv_store_sealed_page(store_.get(), sequence, page, &bytes);
        if (data) copy.assign(data, data + bytes);
        return data != nullptr;
    });
    if (!sealed) return nb::none();
    return nb::bytes(copy.data(), copy.size());
}

nb::tuple StoreHandle::channel_plan(int sequence) const {
    std::vector<uint16_t> order(channels_), means(channels_);
    const auto kv_heads = static_cast<int32_t>(channels_ / head_dim_);
    check(alone(to_read(mutex_), [&] {
        for (int32_t head = 0; head < kv_heads; ++head) {
            const size_t first = static_cast<size_t>(head) * head_dim_;
            if (vidkv_status status = vidkv_store_channel_plan(store_.get(), sequence, head, &order[first], &means[first]))
                return status;
        }
        return VIDKV_OK;
    }));
    return nb::make_tuple(nb::bytes(order.data(), order.size() * 2), nb::bytes(means.data(), means.size() * 2));
}

vidkv_store_stats StoreHandle::stats() const {
    return alone(to_read(mutex_), [&] {
        vidkv_store_stats stats{};
        vidkv_store_get_stats(store_.get(), &stats);
        return stats;
    });
}

void attention(const StoreHandle & keys, const StoreHandle & values, const ConstArray & q, const Array & out, int64_t cells,
               int sequence, const std::optional<ConstArray> & mask, bool causal, float scale, float softcap,
               const std::optional<ConstArray> & sinks, int threads) {
    require_heads(q, "q");
    require(is_f32(out), "out must be float32");
    require_rows(out, "out", 3);
    require(&keys != &values, "attention needs a key store and a value store");
    require(q.shape(2) == keys.head_dim(), "q must have the keys' head_dim, " + std::to_string(keys.head_dim()));
    require(out.shape(0) == q.shape(0) && out.shape(1) == q.shape(1) && out.shape(2) == values.head_dim(),
            "out must be [tokens, heads, head_dim of the values]");
    vidkv_attention_args args{};
    args.q = static_cast<const float *>(q.data());
    args.q_token_stride = q.stride(0), args.q_head_stride = q.stride(1);
    args.out = static_cast<float *>(out.data());
    args.out_token_stride = out.stride(0), args.out_head_stride = out.stride(1);
    args.tokens = static_cast<int64_t>(q.shape(0));
    args.heads = static_cast<int32_t>(q.shape(1));
    args.cells = cells;
    args.sequence = args.value_sequence = sequence;
    if (mask) {
        require(is_f16(*mask), "mask must be float16");
        require_rows(*mask, "mask", 2);
        require(mask->shape(0) == q.shape(0) && static_cast<int64_t>(mask->shape(1)) >= cells,
                "mask must be [tokens, cells]");
        args.mask = static_cast<const uint16_t *>(mask->data());
        args.mask_stride = mask->stride(0);
    }
    args.causal = causal;
    args.scale = scale;
    args.softcap = softcap;
    if (sinks) {
        require(is_f32(*sinks) && sinks->ndim() == 1 && sinks->shape(0) == q.shape(1) && is_dense(*sinks),
                "sinks must be a contiguous float32 array [heads]");
        args.sinks = static_cast<const float *>(sinks->data());
    }
    args.threads = threads;
    check(alone(Both{to_read(keys.mutex()), to_read(values.mutex())},
                [&] { return vidkv_attention(keys.get(), values.get(), &args); }));
}

Cache::Cache(int layers, int kv_heads, int head_dim, int64_t cells, const vidkv_params & params, int sequences)
    : layers_(layers), kv_heads_(static_cast<size_t>(kv_heads)), head_dim_(static_cast<size_t>(head_dim)) {
    const vidkv_cache_shape shape{layers, kv_heads, head_dim, cells, sequences};
    vidkv_cache * cache = nullptr;
    check(vidkv_cache_create(&shape, &params, &cache));
    cache_.reset(cache);
}

void Cache::require_layer(int layer) const {
    if (layer < 0 || layer >= layers_) throw std::out_of_range("there is no layer " + std::to_string(layer));
}

void Cache::require_tokens(const ConstArray & a, const char * name) const {
    require_heads(a, name);
    require(is_dense(a) && a.shape(2) == head_dim_,
            std::string(name) + " must be contiguous with a head_dim of " + std::to_string(head_dim_));
}

void Cache::append(int layer, int sequence, const ConstArray & keys, const ConstArray & values) {
    require_tokens(keys, "keys");
    require_tokens(values, "values");
    require(keys.shape(1) == kv_heads_ && values.shape(1) == kv_heads_ && keys.shape(0) == values.shape(0),
            "keys and values must be [n, " + std::to_string(kv_heads_) + ", " + std::to_string(head_dim_) + "]");
    change([&](vidkv_cache * cache) {
        return vidkv_cache_append(cache, layer, sequence, static_cast<int64_t>(keys.shape(0)),
                                  static_cast<const float *>(keys.data()), static_cast<const float *>(values.data()));
    });
}

void Cache::observe_queries(int layer, int sequence, const ConstArray & q) {
    require_tokens(q, "q");
    change([&](vidkv_cache * cache) {
        return vidkv_cache_observe_queries(cache, layer, sequence, static_cast<const float *>(q.data()),
                                           static_cast<int64_t>(q.shape(0)), static_cast<int32_t>(q.shape(1)));
    });
}

void Cache::protect(int sequence, const std::vector<int64_t> & cells) {
    if (cells.empty()) return;
    change([&](vidkv_cache * cache) {
        return vidkv_cache_protect(cache, sequence, cells.data(), static_cast<int64_t>(cells.size()));
    });
}

void Cache::seal(int threads) {
    change([&](vidkv_cache * cache) { return vidkv_cache_seal(cache, threads); });
}
void Cache::truncate(int sequence, int64_t length) {
    change([&](vidkv_cache * cache) { return vidkv_cache_truncate(cache, sequence, length); });
}
void Cache::copy_sequence(int from, int to) {
    change([&](vidkv_cache * cache) { return vidkv_cache_copy_sequence(cache, from, to); });
}
void Cache::clear() {
    change([](vidkv_cache * cache) { return vidkv_cache_clear(cache), VIDKV_OK; });
}
void Cache::save(const std::string & path) const {
    check(alone(to_read(mutex_), [&] { return vidkv_cache_save(cache_.get(), path.c_str()); }));
}
void Cache::load(const std::string & path) {
    change([&](vidkv_cache * cache) { return vidkv_cache_load(cache, path.c_str()); });
}

int64_t Cache::length(int layer, int sequence) const {
    return alone(to_read(mutex_), [&] { return vidkv_cache_length(cache_.get(), layer, sequence); });
}

void Cache::read(int layer, const std::string & side, int sequence, int64_t first_cell, const Array & out) {
    require_layer(layer);
    require_out(out, kv_heads_ * head_dim_);
    const bool keys = side_from(side) == VIDKV_KEYS;
    check(alone(to_read(mutex_), [&] {
        vidkv_cache * cache = cache_.get();
        return read_rows(keys ? vidkv_cache_keys(cache, layer) : vidkv_cache_values(cache, layer), sequence, first_cell,
                         out);
    }));
}

void Cache::attend(int layer, const ConstArray & q, const Array & out, int sequence, bool causal,
                   std::optional<float> scale, int threads) {
    require_layer(layer);
    require_tokens(q, "q");
    require(is_f32(out), "out must be float32");
    require_rows(out, "out", 3);
    require(out.shape(0) == q.shape(0) && out.shape(1) == q.shape(1) && out.shape(2) == q.shape(2),
            "out must have the shape of q");
    vidkv_attention_args args{};
    args.q = static_cast<const float *>(q.data());
    args.q_token_stride = q.stride(0), args.q_head_stride = q.stride(1);
    args.out = static_cast<float *>(out.data());
    args.out_token_stride = out.stride(0), args.out_head_stride = out.stride(1);
    args.tokens = static_cast<int64_t>(q.shape(0));
    args.heads = static_cast<int32_t>(q.shape(1));
    args.sequence = args.value_sequence = sequence;
    args.causal = causal;
    args.scale = scale.value_or(1.0f / std::sqrt(static_cast<float>(head_dim_)));
    args.threads = threads;
    check(alone(to_read(mutex_), [&] {
        vidkv_cache * cache = cache_.get();
        args.cells = vidkv_cache_length(cache, layer, sequence);
        return vidkv_attention(vidkv_cache_keys(cache, layer), vidkv_cache_values(cache, layer), &args);
    }));
}

vidkv_store_stats Cache::stats() const {
    return alone(to_read(mutex_), [&] {
        vidkv_store_stats stats{};
        vidkv_cache_get_stats(cache_.get(), &stats);
        return stats;
    });
}

} // namespace vidkv::python
