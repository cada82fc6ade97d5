#include "kv_allocation.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "device.h"
#include "kv_buffer.h"
#include "settings.h"

namespace vidkv_ggml {

namespace {

constexpr size_t alignment = 64;

// ---- recognising a KV cache ----

struct KvName {
    bool is_kv = false;
    vidkv_side side = VIDKV_KEYS;
    int layer = 0;
};

// llama.cpp names them cache_k_l<layer> and cache_v_l<layer>; other caches (indexer, recurrent) share only "cache_".
KvName parse_name(const char * name) {
    KvName parsed;
    char side = 0, tail = 0;
    const int fields = std::sscanf(name, "cache_%c_l%d%c", &side, &parsed.layer, &tail);
    parsed.is_kv = fields == 2 && (side == 'k' || side == 'v');
    parsed.side = side == 'v' ? VIDKV_VALUES : VIDKV_KEYS;
    return parsed;
}

bool is_kv(const ggml_tensor * tensor) { return !tensor->view_src && parse_name(tensor->name).is_kv; }

// A KV cache that is to be allocated: its tensors, or why it cannot be packed.
struct KvCache {
    std::vector<ggml_tensor *> tensors;
    std::set<int> layers;
    std::string obstacle;

    int64_t cells() const { return tensors.front()->ne[1]; }
};

std::string obstacle_of(const std::vector<ggml_tensor *> & tensors) {
    std::set<int> layers[2];
    for (const ggml_tensor * tensor : tensors) {
        const KvName name = parse_name(tensor->name);
        layers[name.side].insert(name.layer);
        if (tensor->type != GGML_TYPE_F16) {
            return std::string("its type is ") + ggml_type_name(tensor->type) + " (leave -ctk and -ctv at f16 to pack it)";
        }
        if (tensor->ne[3] != 1 || tensor->ne[1] != tensors.front()->ne[1] || tensor->ne[2] != tensors.front()->ne[2]) {
            return "its layers differ in size";
        }
    }
    if (layers[VIDKV_KEYS] != layers[VIDKV_VALUES]) return "the model keeps no separate keys and values (latent attention)";
    return "";
}

// Empty if the tensors are something else than a KV cache.
KvCache find_kv_cache(ggml_tensor * const * tensors, int n) {
    KvCache cache;
    for (int i = 0; i < n; ++i) {
        if (tensors[i]->view_src) continue;
        if (tensors[i]->data || !is_kv(tensors[i])) return {};
        cache.tensors.push_back(tensors[i]);
        cache.layers.insert(parse_name(tensors[i]->name).layer);
    }
    cache.obstacle = obstacle_of(cache.tensors);
    return cache;
}

size_t padded_bytes(const ggml_tensor * tensor) { return GGML_PAD(ggml_nbytes(tensor), alignment); }

// ---- sliding-window caches ----

// The KV cache allocated last, if it is still there.
struct Latest {
    ggml_backend_buffer_t buffer = nullptr;
    std::set<int> layers;
    int64_t cells = 0;
};
std::mutex latest_mutex;
Latest latest;

// llama.cpp splits a model with sliding-window layers into two caches, made one after the other: the full one first, then a
// smaller one for the other layers, whose cells are recycled.
bool is_sliding_window(const KvCache & cache) {
    const std::lock_guard lock(latest_mutex);
    if (!latest.buffer || cache.cells() >= latest.cells) return false;
    return std::none_of(cache.layers.begin(), cache.layers.end(), [](int layer) { return latest.layers.contains(layer); });
}

void remember_kv_buffer(ggml_backend_buffer_t buffer, const KvCache & cache) {
    const std::lock_guard lock(latest_mutex);
    latest = {buffer, cache.layers, cache.cells()};
}

// ---- allocation ----

std::unique_ptr<KvBuffer> reserve_kv_buffer(const KvCache & cache) {
    const size_t size = std::accumulate(cache.tensors.begin(), cache.tensors.end(), size_t{0},
                                        [](size_t sum, const ggml_tensor * tensor) { return sum + padded_bytes(tensor); });
    try {
        return std::make_unique<KvBuffer>(size, settings_for(cache.layers), is_sliding_window(cache));
    } catch (const std::bad_alloc &) {
        GGML_LOG_ERROR("vidkv: no address space for a KV cache of %zu bytes\n", size);
        return nullptr;
    }
}

void say_unpacked(const KvCache & cache) {
    GGML_LOG_WARN("vidkv: the KV cache stays in plain memory: %s\n", cache.obstacle.c_str());
}

// Host memory under the device's name: ordinary for everyone, yet flash attention on it counts as this device's.
ggml_backend_buffer_t as_ours(ggml_backend_buffer_t buffer) {
    if (buffer) buffer->buft = default_buffer_type();
    return buffer;
}

ggml_backend_buffer_t allocate_plain(ggml_backend_buffer_type_t, size_t size) {
    return as_ours(ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size));
}

#if VIDKV_GGML_ALLOCATES_LISTS

size_t planned_bytes(const KvCache & cache) {
    const CacheSettings settings = settings_for(cache.layers);
    const bool stays_f16 = is_sliding_window(cache);
    size_t bytes = 0;
    for (const ggml_tensor * tensor : cache.tensors) {
        vidkv_params params = settings.params_of(layer_of(tensor));
        if (stays_f16) params.key_bits = params.value_bits = 16;
        const vidkv_store_shape shape = shape_of(tensor);
        bytes += vidkv_planned_bytes(&shape, &params);
    }
    return bytes;
}

size_t list_size(ggml_backend_buffer_type_t, ggml_tensor ** tensors, int n) {
    const KvCache cache = find_kv_cache(tensors, n);
    if (!cache.tensors.empty() && cache.obstacle.empty()) return planned_bytes(cache);
    return ggml_backend_buft_get_alloc_size_n(ggml_backend_cpu_buffer_type(), tensors, n);
}

ggml_backend_buffer_t allocate_kv_cache(const KvCache & cache) {
    auto owner = reserve_kv_buffer(cache);
    if (!owner) return nullptr;
    KvBuffer & kv = *owner;
    ggml_backend_buffer_t buffer = wrap(std::move(owner), planned_bytes(cache));
    uint8_t * data = kv.base();
    for (ggml_tensor * tensor : cache.tensors) {
        tensor->buffer = buffer;
        tensor->data = data;
        data += padded_bytes(tensor);
        if (!kv.attach(tensor)) {
            ggml_backend_buffer_free(buffer);
            return nullptr;
        }
    }
    remember_kv_buffer(buffer, cache);
    return buffer;
}

ggml_backend_buffer_t allocate_list(ggml_backend_buffer_type_t, ggml_tensor ** tensors, int n) {
    const KvCache cache = find_kv_cache(tensors, n);
    if (!cache.tensors.empty() && !cache.obstacle.empty()) say_unpacked(cache);
    if (cache.tensors.empty() || !cache.obstacle.empty()) {
        return as_ours(ggml_backend_buft_alloc_buffer_n(ggml_backend_cpu_buffer_type(), tensors, n));
    }
    ggml_backend_buffer_t buffer = allocate_kv_cache(cache);
    for (int i = 0; buffer && i < n; ++i) {
        if (tensors[i]->view_src && !tensors[i]->buffer) ggml_backend_view_init(tensors[i]);
    }
    return buffer;
}

// Copies of a store's rows (states kept on the device) are plain memory.
ggml_backend_buffer_t allocate_copies(ggml_backend_buffer_type_t, ggml_tensor ** tensors, int n) {
    return as_ours(ggml_backend_buft_alloc_buffer_n(ggml_backend_cpu_buffer_type(), tensors, n));
}

#else

// The KV tensors whose sizes were asked for since the last other tensor: ggml asks for all of a list, then allocates.
struct Asked {
    const ggml_tensor * tensor;
    size_t size;
};
thread_local std::vector<Asked> asked;

size_t tensor_size(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    const size_t size = ggml_nbytes(tensor);
    if (!is_kv(tensor) || tensor->buffer)
        asked.clear();
    else
        asked.push_back({tensor, GGML_PAD(size, alignment)});
    return size;
}

// The tensors asked for last that fill exactly this size; empty if there are none.
KvCache asked_kv_cache(size_t size) {
    std::vector<ggml_tensor *> tensors;
    size_t sum = 0;
    for (auto each = asked.rbegin(); each != asked.rend() && sum < size; ++each) {
        sum += each->size;
        tensors.push_back(const_cast<ggml_tensor *>(each->tensor));
    }
    asked.clear();
    if (sum != size) return {};
    return find_kv_cache(tensors.data(), static_cast<int>(tensors.size()));
}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
    const KvCache cache = asked_kv_cache(size);
    if (!cache.tensors.empty() && !cache.obstacle.empty()) say_unpacked(cache);
    if (cache.tensors.empty() || !cache.obstacle.empty()) return allocate_plain(type, size);
    auto owner = reserve_kv_buffer(cache);
    if (!owner) return nullptr;
    // ggml checks tensors against the buffer's size: it must be that of the addresses.
    ggml_backend_buffer_t buffer = wrap(std::move(owner), size);
    remember_kv_buffer(buffer, cache);
    return buffer;
}

#endif

ggml_backend_buffer_type make_default_type() {
    ggml_backend_buffer_type type{};
    type.iface.get_name = [](ggml_backend_buffer_type_t) { return device_name; };
    type.iface.get_alignment = [](ggml_backend_buffer_type_t) { return alignment; };
    type.iface.is_host = [](ggml_backend_buffer_type_t) { return true; };
#if VIDKV_GGML_ALLOCATES_LISTS
    type.iface.alloc_buffer = allocate_plain;
    type.iface.alloc_buffer_n = allocate_list;
    type.iface.get_alloc_size_n = list_size;
#else
    type.iface.alloc_buffer = allocate;
    type.iface.get_alloc_size = tensor_size;
#endif
    type.device = device();
    return type;
}

ggml_backend_buffer_type make_store_type() {
    ggml_backend_buffer_type type{};
    type.iface.get_name = [](ggml_backend_buffer_type_t) { return "VIDKV_STORE"; };
    type.iface.alloc_buffer = allocate_plain;
    type.iface.get_alignment = [](ggml_backend_buffer_type_t) { return alignment; };
    type.iface.is_host = [](ggml_backend_buffer_type_t) { return false; };
#if VIDKV_GGML_ALLOCATES_LISTS
    type.iface.alloc_buffer_n = allocate_copies;
#endif
    type.device = device();
    return type;
}

} // namespace

ggml_backend_buffer_type_t default_buffer_type() {
    static ggml_backend_buffer_type type = make_default_type();
    return &type;
}

ggml_backend_buffer_type_t store_buffer_type() {
    static ggml_backend_buffer_type type = make_store_type();
    return &type;
}

vidkv_store_shape shape_of(const ggml_tensor * tensor) {
    return {parse_name(tensor->name).side, static_cast<int32_t>(tensor->ne[0]), 0, tensor->ne[1],
            static_cast<int32_t>(tensor->ne[2])};
}

int layer_of(const ggml_tensor * tensor) { return parse_name(tensor->name).layer; }

void forget_kv_buffer(ggml_backend_buffer_t buffer) {
    const std::lock_guard lock(latest_mutex);
    if (latest.buffer == buffer) latest = {};
}

} // namespace vidkv_ggml
