// The C API over the C++ classes: checks pointers, turns exceptions into statuses. Attention is in api/attention.cpp.
#include <algorithm>
#include <vector>

#include "api/guarded.h"
#include "api/sized.h"
#include "codec/presets.h"

using vidkv::Cache;
using vidkv::check_store;
using vidkv::copy_in;
using vidkv::copy_out;
using vidkv::fail;
using vidkv::guarded;
using vidkv::null_pointer;
using vidkv::Store;
using vidkv::unwrap;

namespace {

constexpr int32_t most_layers = 1 << 16;

// A store that is asked for, from structs of any version.
struct StoreKind {
    vidkv_store_shape shape;
    vidkv_params params;

    vidkv_status take(const vidkv_store_shape * a_shape, size_t shape_size, const vidkv_params * some_params,
                      size_t params_size) {
        if (vidkv_status status = copy_in(a_shape, shape_size, shape)) return status;
        if (vidkv_status status = copy_in(some_params, params_size, params)) return status;
        return check_store(shape, params);
    }
};

vidkv_status check_request(const vidkv_seal_request & request) {
    if (!request.store || (!request.pages && request.n_pages > 0)) return null_pointer();
    const Store & store = *unwrap(request.store);
    if (request.sequence < 0 || request.sequence >= store.shape().sequences)
        return fail(VIDKV_E_ARGUMENT, "no such sequence in the cache");
    for (int64_t i = 0; i < request.n_pages; ++i) {
        if (request.pages[i] < 0 || request.pages[i] >= store.pages())
            return fail(VIDKV_E_ARGUMENT, "no such page in the store");
    }
    if (!request.keys) return VIDKV_OK;
    const vidkv_store_shape &mine = store.shape(), &other = unwrap(request.keys)->shape();
    if (mine.side != VIDKV_VALUES || other.side != VIDKV_KEYS || mine.sequences != other.sequences ||
        mine.cells != other.cells) {
        return fail(VIDKV_E_ARGUMENT, "protection by queries needs the values and the keys of one layer");
    }
    return VIDKV_OK;
}

} // namespace

const char * vidkv_last_error(void) { return vidkv::last_error(); }
const char * vidkv_version(void) { return VIDKV_VERSION; }

vidkv_status vidkv_params_from_preset_sized(const char * name, vidkv_params * out, size_t params_size) {
    return guarded(
        [&] {
            vidkv_params params{};
            if (vidkv_status status = vidkv::params_from_preset(name, params)) return status;
            return copy_out(params, out, params_size), VIDKV_OK;
        },
        name, out);
}
const char * vidkv_preset_name(size_t index) { return vidkv::preset_name(index); }
vidkv_status vidkv_params_check_sized(const vidkv_params * params, size_t params_size, int32_t head_dim) {
    return guarded(
        [&] {
            vidkv_params all;
            if (vidkv_status status = copy_in(params, params_size, all)) return status;
            return vidkv::check_params(all, head_dim);
        },
        params);
}
double vidkv_true_bits_sized(const vidkv_params * params, size_t params_size, vidkv_side side, int32_t head_dim) {
    double bits = 0;
    guarded(
        [&] {
            vidkv_params all;
            if (vidkv_status status = copy_in(params, params_size, all)) return status;
            return bits = vidkv::true_bits(all, side, head_dim), VIDKV_OK;
        },
        params);
    return bits;
}

vidkv_status vidkv_store_create_sized(const vidkv_store_shape * shape, size_t shape_size, const vidkv_params * params,
                                      size_t params_size, vidkv_store ** out) {
    return guarded(
        [&] {
            StoreKind kind;
            if (vidkv_status status = kind.take(shape, shape_size, params, params_size)) return status;
            *out = reinterpret_cast<vidkv_store *>(new Store(kind.shape, kind.params));
            return VIDKV_OK;
        },
        shape, params, out);
}
void vidkv_store_free(vidkv_store * store) { delete unwrap(store); }

vidkv_status vidkv_store_set_head_dim(vidkv_store * store, int32_t head_dim) {
    return guarded([&] { return unwrap(store)->set_head_dim(head_dim); }, store);
}
vidkv_status vidkv_store_write_f32(vidkv_store * store, int32_t sequence, const int64_t * cells, int64_t n,
                                   const float * rows, int64_t stride) {
    return guarded([&] { return unwrap(store)->write(sequence, cells, n, rows, stride); }, store, cells, rows);
}
vidkv_status vidkv_store_write_f16(vidkv_store * store, int32_t sequence, const int64_t * cells, int64_t n,
                                   const uint16_t * rows, int64_t stride) {
    return guarded([&] { return unwrap(store)->write(sequence, cells, n, rows, stride); }, store, cells, rows);
}
vidkv_status vidkv_store_read_f16(const vidkv_store * store, int32_t sequence, int64_t first_cell, int64_t n,
                                  uint16_t * rows) {
    return guarded([&] { return unwrap(store)->read(sequence, first_cell, n, rows); }, store, rows);
}
vidkv_status vidkv_store_observe_queries(vidkv_store * store, int32_t sequence, const float * q, int64_t tokens,
                                         int32_t heads, int64_t token_stride, int64_t head_stride) {
    return guarded([&] { return unwrap(store)->observe_queries(sequence, q, tokens, heads, token_stride, head_stride); },
                   store, q);
}
vidkv_status vidkv_store_observe_batch(vidkv_store * store, int32_t sequence, const float * q, int64_t tokens,
                                       int32_t heads, int64_t token_stride, int64_t head_stride, int32_t threads) {
    return guarded(
        [&] { return unwrap(store)->observe_queries(sequence, q, tokens, heads, token_stride, head_stride, threads); },
        store, q);
}
vidkv_status vidkv_store_shift_sized(vidkv_store * keys, int32_t sequence, const int64_t * cells, const int32_t * shifts,
                                     int64_t n, const vidkv_rotation * rotation, size_t rotation_size, int64_t * left,
                                     int64_t * n_left) {
    return guarded(
        [&] {
            vidkv_rotation own;
            if (vidkv_status status = copy_in(rotation, rotation_size, own)) return status;
            std::vector<int64_t> rest;
            const auto rope = vidkv::Rope::make(own);
            const vidkv_status status = unwrap(keys)->shift(sequence, cells, shifts, n, rope, own.gain, rest);
            if (status != VIDKV_OK) return status;
            std::copy(rest.begin(), rest.end(), left);
            *n_left = static_cast<int64_t>(rest.size());
            return VIDKV_OK;
        },
        keys, cells, shifts, rotation, left, n_left);
}
vidkv_status vidkv_store_protect(vidkv_store * values, int32_t sequence, const int64_t * cells, int64_t n) {
    return guarded([&] { return unwrap(values)->protect(sequence, cells, n); }, values, cells);
}
vidkv_status vidkv_store_protect_by_queries(vidkv_store * values, const vidkv_store * keys, float scale) {
    return guarded([&] { return unwrap(values)->protect_by_queries(*unwrap(keys), scale); }, values, keys);
}
vidkv_status vidkv_store_seal(vidkv_store * store, int32_t threads) {
    return guarded([&] { return unwrap(store)->seal(threads); }, store);
}
vidkv_status vidkv_seal_pages_sized(const vidkv_seal_request * requests, size_t request_size, int64_t n, int32_t threads) {
    return guarded(
        [&] {
            std::vector<vidkv_seal_request> all(static_cast<size_t>(std::max<int64_t>(n, 0)));
            std::vector<vidkv::SealOrder> orders;
            for (size_t i = 0; i < all.size(); ++i) {
                const auto * at = reinterpret_cast<const uint8_t *>(requests) + i * request_size;
                vidkv_seal_request & r = all[i];
                if (vidkv_status status = copy_in(reinterpret_cast<const vidkv_seal_request *>(at), request_size, r))
                    return status;
                if (vidkv_status status = check_request(r)) return status;
                orders.push_back({unwrap(r.store), r.sequence, {r.pages, r.pages + r.n_pages}});
            }
            for (size_t i = 0; i < all.size(); ++i) {
                const vidkv_seal_request & r = all[i];
                if (r.keys) unwrap(r.store)->mark_by_queries(r.sequence, orders[i].pages, *unwrap(r.keys), r.scale);
            }
            vidkv::seal_pages(orders, threads);
            return VIDKV_OK;
        },
        requests);
}
vidkv_status vidkv_store_erase(vidkv_store * store, int32_t sequence, const int64_t * cells, int64_t n) {
    return guarded([&] { return unwrap(store)->erase(sequence, cells, n); }, store, cells);
}
vidkv_status vidkv_store_begin(vidkv_store * store, int32_t sequence, int64_t page) {
    return guarded([&] { return unwrap(store)->begin(sequence, page); }, store);
}
void vidkv_store_keep_open(vidkv_store * store) {
    if (store) unwrap(store)->keep_open();
}
vidkv_status vidkv_store_truncate(vidkv_store * store, int32_t sequence, int64_t first_cell) {
    return guarded([&] { return unwrap(store)->truncate(sequence, first_cell); }, store);
}
vidkv_status vidkv_store_copy_sequence(vidkv_store * store, int32_t from, int32_t to) {
    return guarded([&] { return unwrap(store)->copy_sequence(from, to); }, store);
}
vidkv_status vidkv_store_resize(vidkv_store * store, int64_t cells, int32_t sequences) {
    return guarded([&] { return unwrap(store)->resize(cells, sequences); }, store);
}
vidkv_status vidkv_store_clone(const vidkv_store * store, vidkv_store ** out) {
    return guarded(
        [&] {
            *out = reinterpret_cast<vidkv_store *>(unwrap(store)->clone().release());
            return VIDKV_OK;
        },
        store, out);
}
vidkv_status vidkv_store_export_page(const vidkv_store * store, int32_t sequence, int64_t page, uint8_t * data,
                                     uint64_t * bytes, int32_t * sinks) {
    return guarded(
        [&] {
            std::vector<uint8_t> out;
            int count = 0;
            if (vidkv_status status = unwrap(store)->export_page(sequence, page, out, count)) return status;
            if (data && *bytes < out.size())
                return vidkv::fail(VIDKV_E_ARGUMENT, "the page takes " + std::to_string(out.size()) + " bytes");
            if (data) std::copy(out.begin(), out.end(), data);
            *bytes = out.size();
            *sinks = count;
            return VIDKV_OK;
        },
        store, bytes, sinks);
}

vidkv_status vidkv_store_import_page(vidkv_store * store, int32_t sequence, int64_t page, const uint8_t * data,
                                     uint64_t bytes) {
    return guarded([&] { return unwrap(store)->import_page(sequence, page, data, bytes); }, store, data);
}

const uint8_t * vidkv_store_sealed_page(const vidkv_store * store, int32_t sequence, int64_t page, uint64_t * bytes) {
    size_t size = 0;
    const uint8_t * data = nullptr;
    guarded([&] { return data = unwrap(store)->sealed_page(sequence, page, size), VIDKV_OK; }, store);
    if (bytes) *bytes = size;
    return data;
}
vidkv_status vidkv_store_channel_plan(const vidkv_store * store, int32_t sequence, int32_t kv_head, uint16_t * order,
                                      uint16_t * means) {
    return guarded([&] { return unwrap(store)->channel_plan(sequence, kv_head, order, means); }, store, order);
}
vidkv_status vidkv_store_release_page(vidkv_store * store, int32_t sequence, int64_t page) {
    return guarded([&] { return unwrap(store)->release_page(sequence, page); }, store);
}
void vidkv_store_clear(vidkv_store * store) {
    if (store) unwrap(store)->clear();
}
void vidkv_store_get_stats_sized(const vidkv_store * store, vidkv_store_stats * out, size_t stats_size) {
    if (store && out) copy_out(unwrap(store)->stats(), out, stats_size);
}
uint64_t vidkv_planned_bytes_sized(const vidkv_store_shape * shape, size_t shape_size, const vidkv_params * params,
                                   size_t params_size) {
    StoreKind kind;
    const auto take = [&] { return kind.take(shape, shape_size, params, params_size); };
    return guarded(take, shape, params) == VIDKV_OK ? vidkv::planned_bytes(kind.shape, kind.params) : 0;
}

vidkv_status vidkv_cache_create_sized(const vidkv_cache_shape * shape_given, size_t shape_size,
                                      const vidkv_params * params_given, size_t params_size, vidkv_cache ** out) {
    return guarded(
        [&] {
            vidkv_cache_shape whole_shape;
            vidkv_params whole_params;
            const vidkv_cache_shape * shape = &whole_shape;
            const vidkv_params * params = &whole_params;
            if (vidkv_status status = copy_in(shape_given, shape_size, whole_shape)) return status;
            if (vidkv_status status = copy_in(params_given, params_size, whole_params)) return status;
            if (shape->layers < 1 || shape->kv_heads < 1 || shape->head_dim < 1) {
                return fail(VIDKV_E_ARGUMENT, "layers, kv_heads and head_dim must be at least 1");
            }
            const int64_t channels = int64_t{shape->kv_heads} * shape->head_dim;
            if (shape->layers > most_layers || channels > vidkv::most_channels) {
                return fail(VIDKV_E_ARGUMENT,
                            "a cache has at most 65536 layers and 1048576 channels (kv_heads times head_dim)");
            }
            for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
                const vidkv_store_shape store{side, static_cast<int32_t>(channels), shape->head_dim, shape->cells,
                                              shape->sequences};
                if (vidkv_status status = check_store(store, *params)) return status;
            }
            *out = reinterpret_cast<vidkv_cache *>(new Cache(*shape, *params));
            return VIDKV_OK;
        },
        shape_given, params_given, out);
}
void vidkv_cache_free(vidkv_cache * cache) { delete unwrap(cache); }

vidkv_store * vidkv_cache_keys(vidkv_cache * cache, int32_t layer) {
    if (!cache || layer < 0 || layer >= unwrap(cache)->shape().layers) return nullptr;
    return reinterpret_cast<vidkv_store *>(&unwrap(cache)->keys(layer));
}
vidkv_store * vidkv_cache_values(vidkv_cache * cache, int32_t layer) {
    if (!cache || layer < 0 || layer >= unwrap(cache)->shape().layers) return nullptr;
    return reinterpret_cast<vidkv_store *>(&unwrap(cache)->values(layer));
}
vidkv_status vidkv_cache_append(vidkv_cache * cache, int32_t layer, int32_t sequence, int64_t n, const float * k,
                                const float * v) {
    return guarded([&] { return unwrap(cache)->append(layer, sequence, n, k, v); }, cache, k, v);
}
int64_t vidkv_cache_length(const vidkv_cache * cache, int32_t layer, int32_t sequence) {
    if (!cache) return 0;
    const vidkv_cache_shape & shape = unwrap(cache)->shape();
    const bool there = layer >= 0 && layer < shape.layers && sequence >= 0 && sequence < shape.sequences;
    return there ? unwrap(cache)->length(layer, sequence) : 0;
}
vidkv_status vidkv_cache_observe_queries(vidkv_cache * cache, int32_t layer, int32_t sequence, const float * q,
                                         int64_t tokens, int32_t heads) {
    return guarded([&] { return unwrap(cache)->observe_queries(layer, sequence, q, tokens, heads); }, cache, q);
}
vidkv_status vidkv_cache_protect(vidkv_cache * cache, int32_t sequence, const int64_t * cells, int64_t n) {
    return guarded([&] { return unwrap(cache)->protect(sequence, cells, n); }, cache, cells);
}
vidkv_status vidkv_cache_seal(vidkv_cache * cache, int32_t threads) {
    return guarded([&] { return unwrap(cache)->seal(threads); }, cache);
}
vidkv_status vidkv_cache_truncate(vidkv_cache * cache, int32_t sequence, int64_t length) {
    return guarded([&] { return unwrap(cache)->truncate(sequence, length); }, cache);
}
vidkv_status vidkv_cache_copy_sequence(vidkv_cache * cache, int32_t from, int32_t to) {
    return guarded([&] { return unwrap(cache)->copy_sequence(from, to); }, cache);
}
void vidkv_cache_clear(vidkv_cache * cache) {
    if (cache) unwrap(cache)->clear();
}
void vidkv_cache_get_stats_sized(const vidkv_cache * cache, vidkv_store_stats * out, size_t stats_size) {
    if (cache && out) copy_out(unwrap(cache)->stats(), out, stats_size);
}
vidkv_status vidkv_cache_save(const vidkv_cache * cache, const char * path) {
    return guarded([&] { return unwrap(cache)->save(path); }, cache, path);
}
vidkv_status vidkv_cache_load(vidkv_cache * cache, const char * path) {
    return guarded([&] { return unwrap(cache)->load(path); }, cache, path);
}
