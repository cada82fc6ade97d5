// The C API of attention.
#include <algorithm>
#include <cmath>
#include <new>
#include <string>
#include <vector>

#include "api/sized.h"
#include "attention/attention.h"
#include "base/error.h"
#include "kernels/dispatch.h"

namespace vidkv {

namespace {

vidkv_status refuse(std::string message) { return fail(VIDKV_E_ARGUMENT, "attention: " + std::move(message)); }

vidkv_status check_stores(const Store & keys, const Store & values) {
    if (keys.side() != VIDKV_KEYS || values.side() != VIDKV_VALUES) {
        return refuse("the first store must hold keys and the second values");
    }
    if (keys.head_dim() == 0 || values.head_dim() == 0) {
        return refuse("a store does not know its head_dim yet: call vidkv_store_set_head_dim first");
    }
    for (const Store * store : {&keys, &values}) {
        if (store->head_dim() % 8 == 0) continue;
        return refuse("head_dim must be a multiple of 8, not " + std::to_string(store->head_dim()));
    }
    if (keys.kv_heads() != values.kv_heads()) {
        return refuse("the key store has " + std::to_string(keys.kv_heads()) + " KV heads and the value store " +
                      std::to_string(values.kv_heads()) + ": they must be equal");
    }
    return VIDKV_OK;
}

vidkv_status check_sequence(const Store & store, int32_t sequence, int64_t cells) {
    if (sequence < 0 || sequence >= store.shape().sequences) {
        return refuse("sequence " + std::to_string(sequence) + " does not exist: the store has " +
                      std::to_string(store.shape().sequences));
    }
    if (cells < 0 || cells > store.cells()) {
        return refuse(std::to_string(cells) + " cells were asked for, a sequence has " + std::to_string(store.cells()));
    }
    return VIDKV_OK;
}

// Rows must not overlap: the stride is at least one row.
bool stride_fits(int64_t count, int64_t stride, int64_t row) { return count <= 1 || stride >= row; }

vidkv_status check_memory(const Store & keys, const Store & values, const vidkv_attention_args & args) {
    if (args.tokens < 0) return refuse("the number of query tokens is negative");
    if (args.tokens > 0 && (!args.q || !args.out)) return refuse("q and out must not be null");
    if (!stride_fits(args.heads, args.q_head_stride, keys.head_dim()) ||
        !stride_fits(args.tokens, args.q_token_stride, keys.head_dim())) {
        return refuse("the strides of q must be at least the keys' head_dim, " + std::to_string(keys.head_dim()));
    }
    if (!stride_fits(args.heads, args.out_head_stride, values.head_dim()) ||
        !stride_fits(args.tokens, args.out_token_stride, values.head_dim())) {
        return refuse("the strides of out must be at least the values' head_dim, " + std::to_string(values.head_dim()));
    }
    if (args.mask && !stride_fits(args.tokens, args.mask_stride, args.cells)) {
        return refuse("mask_stride must be at least the number of cells, " + std::to_string(args.cells));
    }
    return VIDKV_OK;
}

} // namespace

// All threads or one. A job of fewer multiply-adds than this is done before a sleeping thread has begun; a part of the
// host's team is never asked for, because an OpenMP runtime may end the threads that are left out.
int worthwhile_threads(const vidkv_attention_args & args, int dims) {
    constexpr double work_for_two = 1 << 21;
    const double work =
        static_cast<double>(args.tokens) * args.heads * static_cast<double>(args.cells) * dims; // may exceed any int
    return work >= work_for_two ? args.threads : 1;
}

vidkv_status check_attention(const Store & keys, const Store & values, const vidkv_attention_args & args) {
    if (vidkv_status status = check_stores(keys, values)) return status;
    if (args.heads < 1 || args.heads % keys.kv_heads() != 0) {
        return refuse(std::to_string(args.heads) + " query heads cannot share " + std::to_string(keys.kv_heads()) +
                      " KV heads: heads must be a positive multiple");
    }
    if (vidkv_status status = check_sequence(keys, args.sequence, args.cells)) return status;
    if (vidkv_status status = check_sequence(values, args.value_sequence, args.cells)) return status;
    if (vidkv_status status = check_memory(keys, values, args)) return status;
    const int64_t pages = (args.cells + page_tokens - 1) / page_tokens;
    if (vidkv_status status = keys.check_mapped(args.sequence, 0, pages)) return status;
    if (vidkv_status status = values.check_mapped(args.value_sequence, 0, pages)) return status;
    if (!std::isfinite(args.scale)) return refuse("scale must be finite");
    if (!(args.softcap >= 0.0f) || !std::isfinite(args.softcap)) return refuse("softcap must be finite and not negative");
    if (!(args.max_bias >= 0.0f) || !std::isfinite(args.max_bias))
        return refuse("max_bias must be finite and not negative");
    if (args.threads < 1) return refuse("threads must be at least 1");
    return VIDKV_OK;
}

} // namespace vidkv

vidkv_status vidkv_attention_sized(const vidkv_store * keys, const vidkv_store * values, const vidkv_attention_args * args,
                                   size_t args_size) {
    if (!keys || !values || !args) return vidkv::refuse("keys, values and args must not be null");
    const auto & key_store = *reinterpret_cast<const vidkv::Store *>(keys);
    const auto & value_store = *reinterpret_cast<const vidkv::Store *>(values);
    try {
        vidkv_attention_args call;
        if (vidkv_status status = vidkv::copy_in(args, args_size, call)) return status;
        if (vidkv_status status = vidkv::check_attention(key_store, value_store, call)) return status;
        call.threads = vidkv::worthwhile_threads(call, key_store.head_dim() + value_store.head_dim());
        vidkv::attend(key_store, value_store, call, vidkv::active_kernels());
        return VIDKV_OK;
    } catch (const std::exception & error) {
        if (dynamic_cast<const std::bad_alloc *>(&error) == nullptr) return vidkv::fail(VIDKV_E_MEMORY, error.what());
        return vidkv::fail(VIDKV_E_MEMORY, "attention: not enough memory for the scratch space; use fewer threads");
    }
}

namespace vidkv {

namespace {

// What the calls have in common, by the first.
void make_alike(vidkv_attention_args & call, const vidkv_attention_args & first) {
    call.heads = first.heads;
    call.scale = first.scale;
    call.softcap = first.softcap;
    call.max_bias = first.max_bias;
    call.sinks = first.sinks;
    call.threads = first.threads;
}

vidkv_status attend_many(const Store & keys, const Store & values, const uint8_t * args, size_t size, int64_t n) {
    std::vector<vidkv_attention_args> calls(static_cast<size_t>(n));
    int64_t tokens = 0, cells = 0;
    for (vidkv_attention_args & call : calls) {
        const auto * from = reinterpret_cast<const vidkv_attention_args *>(args);
        args += size;
        if (vidkv_status status = copy_in(from, size, call)) return status;
        make_alike(call, calls.front());
        if (vidkv_status status = check_attention(keys, values, call)) return status;
        tokens += call.tokens;
        cells = std::max(cells, call.cells);
    }
    vidkv_attention_args all = calls.front();
    all.tokens = tokens;
    all.cells = cells;
    const int threads = worthwhile_threads(all, keys.head_dim() + values.head_dim());
    for (vidkv_attention_args & call : calls) call.threads = threads;
    attend(keys, values, calls, active_kernels());
    return VIDKV_OK;
}

} // namespace

} // namespace vidkv

vidkv_status vidkv_attention_batch_sized(const vidkv_store * keys, const vidkv_store * values,
                                         const vidkv_attention_args * calls, size_t args_size, int64_t n) {
    if (!keys || !values || (!calls && n > 0)) return vidkv::refuse("keys, values and calls must not be null");
    if (n < 0) return vidkv::refuse("the number of calls is negative");
    if (n == 0) return VIDKV_OK;
    try {
        return vidkv::attend_many(*reinterpret_cast<const vidkv::Store *>(keys),
                                  *reinterpret_cast<const vidkv::Store *>(values), reinterpret_cast<const uint8_t *>(calls),
                                  args_size, n);
    } catch (const std::exception & error) {
        if (dynamic_cast<const std::bad_alloc *>(&error) == nullptr) return vidkv::fail(VIDKV_E_MEMORY, error.what());
        return vidkv::fail(VIDKV_E_MEMORY, "attention: not enough memory for the scratch space; use fewer threads");
    }
}

const char * vidkv_isa(void) {
    try {
        return vidkv::active_kernels().name;
    } catch (const std::exception &) {
        return "unknown"; // no memory to find out; the next call tries again
    }
}
const char * vidkv_isa_error(void) {
    try {
        return vidkv::kernels_error();
    } catch (const std::exception &) {
        return "";
    }
}
