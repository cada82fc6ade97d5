// Queries that a key store is read by -> the statistics that weigh its channels and tokens.
#include "base/error.h"
#include "cache/store.h"

namespace vidkv {

vidkv_status Store::observe_queries(int sequence, const float * q, int64_t tokens, int heads, int64_t token_stride,
                                    int64_t head_stride, int threads) {
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    if (shape_.side != VIDKV_KEYS) return fail(VIDKV_E_ARGUMENT, "queries are observed by a key store");
    if (keep_open_ || shape_.head_dim == 0 || !wants_queries(params_)) return VIDKV_OK;
    if (tokens < 0 || heads < 1 || heads % kv_heads() != 0) {
        return fail(VIDKV_E_ARGUMENT, "query heads must be a multiple of the KV heads");
    }
    Sequence & seq = sequences_[sequence];
    if (!seq.queries)
        seq.queries = Ref(new SharedStatistics(kv_heads(), shape_.head_dim));
    else if (!seq.queries.is_alone())
        seq.queries = Ref(new SharedStatistics(*seq.queries));
    seq.queries->observe(q, tokens, heads, token_stride, head_stride, threads);
    return VIDKV_OK;
}

} // namespace vidkv
