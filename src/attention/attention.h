// softmax(scale * Q K^T + mask) V on a key store and a value store: f16 rows and packed pages alike.
#pragma once

#include <span>

#include "kernels/kernels.h"
#include "attention/page_source.h"
#include "cache/store.h"

namespace vidkv {

// Checks that the stores and the arguments fit together; on failure says what does not.
vidkv_status check_attention(const Store & keys, const Store & values, const vidkv_attention_args & args);

// args.threads or one, whichever ends earlier. dims: of a key and a value together.
int worthwhile_threads(const vidkv_attention_args & args, int dims);

// vidkv_attention with given kernels. The arguments must have passed check_attention. The result does not depend on
// args.threads, bit for bit. Throws std::bad_alloc.
void attend(const Store & keys, const Store & values, const vidkv_attention_args & args, const Kernels & kernels);

// Several calls at once. heads, scale, softcap, max_bias, sinks and threads are those of the first. Throws std::bad_alloc.
void attend(const Store & keys, const Store & values, std::span<const vidkv_attention_args> calls, const Kernels & kernels);

// The same over the pages of any source: args.sequence and args.value_sequence have no meaning then.
void attend(const PageSource & keys, const PageSource & values, const vidkv_attention_args & args, const Kernels & kernels);

} // namespace vidkv
