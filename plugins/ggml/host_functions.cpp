#include "host_functions.h"

#include <cmath>
#include <cstring>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "ggml-vidkv.h"
#include "kv_store.h"
#include "placement.h"
#include "saved_state.h"
#include "settings.h"

namespace vidkv_ggml {

namespace {

struct Listener {
    vidkv_query_listener function = nullptr;
    void * user = nullptr;
};
Listener listener;

// Keeps a line until the next call on this thread; null for "".
const char * keep(const std::string & line) {
    static thread_local std::string kept;
    kept = line;
    return kept.empty() ? nullptr : kept.c_str();
}

const char * outcome(bool ok) { return keep(ok ? "" : vidkv_last_error()); }

// Runs work(store) on store number `index`; the line that says why that failed, or null.
template <typename Work> const char * with_store(int32_t index, Work work) {
    try {
        const std::vector<KvStore *> stores = KvStore::live();
        if (index < 0 || static_cast<size_t>(index) >= stores.size()) return keep("there is no store of that number");
        return outcome(work(*stores[static_cast<size_t>(index)]));
    } catch (const std::bad_alloc &) {
        return keep("no memory left");
    }
}

const char * configure_from_host(const char * preset, const vidkv_params * override_or_null) {
    return keep(configure(preset, override_or_null));
}

const char * configure_layers_from_host(const vidkv_layer_loss * losses, int64_t n) {
    return keep(configure_layers(losses, n));
}

void sum_live(vidkv_store_stats * out) {
    for (const KvStore * store : KvStore::live()) {
        const vidkv_store_stats one = store->stats();
        out->bytes += one.bytes;
        out->bytes_f16 += one.bytes_f16;
        out->bytes_planned += one.bytes_planned;
        out->sealed_bytes += one.sealed_bytes;
        out->cells_written += one.cells_written;
        out->cells_sealed += one.cells_sealed;
        out->pages_reopened += one.pages_reopened;
    }
    for (const Placement * placement : Placement::live()) out->bytes += placement->bytes();
}

void sum_stats(vidkv_store_stats * out) {
    if (!out) return;
    *out = {};
    try {
        sum_live(out);
    } catch (const std::bad_alloc &) { // the sum so far is all that can be said
    }
}

void hold_sealing(int hold) { Placement::hold_sealing(hold != 0); }

double packing_seconds() { return Placement::packing_seconds(); }

const char * seal_now(int threads) {
    try {
        for (Placement * placement : Placement::live()) {
            if (!placement->seal_now(threads)) return outcome(false);
        }
        return nullptr;
    } catch (const std::bad_alloc &) {
        return keep("no memory left");
    }
}

const char * protect(int32_t sequence, const int64_t * cells, int64_t n) {
    try {
        for (KvStore * store : KvStore::live()) {
            if (store->side() == VIDKV_VALUES && !store->protect(sequence, cells, n)) return outcome(false);
        }
        return nullptr;
    } catch (const std::bad_alloc &) {
        return keep("no memory left");
    }
}

int32_t count() { return static_cast<int32_t>(KvStore::live_count()); }

const char * info(int32_t index, vidkv_kv_info * out) {
    return with_store(index, [out](const KvStore & store) {
        *out = {store.layer(), store.side(), static_cast<int32_t>(store.channels()), store.head_dim(), store.stats()};
        return true;
    });
}

const char * read(int32_t index, int32_t sequence, int64_t first, int64_t n, uint16_t * rows) {
    return with_store(index,
                      [=](const KvStore & store) { return store.read_rows(sequence * store.cells() + first, n, rows); });
}

const char * write(int32_t index, int32_t sequence, int64_t first, int64_t n, const uint16_t * rows) {
    return with_store(index, [=](KvStore & store) {
        std::vector<int64_t> ids(static_cast<size_t>(n));
        std::iota(ids.begin(), ids.end(), sequence * store.cells() + first);
        return store.write_rows(ids.data(), n, rows, store.channels());
    });
}

// What attention shows a value store otherwise: the keys of its layer, by which it finds the tokens to protect.
void pair_values_with(const KvStore & keys) {
    for (KvStore * store : KvStore::live()) {
        if (store->side() != VIDKV_VALUES || store->layer() != keys.layer()) continue;
        store->pair_with(keys, 1.0f / std::sqrt(static_cast<float>(keys.head_dim())));
    }
}

const char * observe(int32_t index, int32_t sequence, const float * q, int64_t tokens, int32_t heads) {
    return with_store(index, [=](KvStore & store) {
        if (store.side() == VIDKV_KEYS) pair_values_with(store);
        return store.observe_queries(sequence, q, tokens, heads, int64_t{heads} * store.head_dim(), store.head_dim(), 1);
    });
}

const char * keep_open(int32_t index) {
    return with_store(index, [](KvStore & store) { return store.keep_open(), true; });
}

void listen(vidkv_query_listener function, void * user) { listener = {function, user}; }

const vidkv_inspector * inspector() {
    static const vidkv_inspector functions = {count, info, read, write, observe, keep_open, listen};
    return &functions;
}

struct HostFunction {
    const char * name;
    void * address;
};

} // namespace

void * host_function(const char * name) {
    const HostFunction functions[] = {
        {VIDKV_PROC_CONFIGURE, reinterpret_cast<void *>(configure_from_host)},
        {VIDKV_PROC_CONFIGURE_LAYERS, reinterpret_cast<void *>(configure_layers_from_host)},
        {VIDKV_PROC_STATS, reinterpret_cast<void *>(sum_stats)},
        {VIDKV_PROC_HOLD_SEALING, reinterpret_cast<void *>(hold_sealing)},
        {VIDKV_PROC_PACKING_SECONDS, reinterpret_cast<void *>(packing_seconds)},
        {VIDKV_PROC_SEAL_NOW, reinterpret_cast<void *>(seal_now)},
        {VIDKV_PROC_PROTECT, reinterpret_cast<void *>(protect)},
        {VIDKV_PROC_STATE, reinterpret_cast<void *>(state_functions)},
        {VIDKV_PROC_INSPECTOR, reinterpret_cast<void *>(inspector)},
    };
    for (const HostFunction & function : functions) {
        if (std::strcmp(name, function.name) == 0) return function.address;
    }
    return nullptr;
}

void tell_queries(const KvStore & keys, int stream, const float * q, int64_t tokens, int heads, int64_t token_stride,
                  int64_t head_stride) {
    if (listener.function)
        listener.function(listener.user, keys.layer(), stream, q, tokens, heads, token_stride, head_stride);
}

} // namespace vidkv_ggml
