// softmax(scale * Q K^T + mask) V on a key store and a value store: f16 rows and packed pages alike.
#pragma once

#include "kernels/kernels.h"
#include "cache/store.h"

namespace vidkv {

// Checks that the stores and the arguments fit together; on failure says what does not.
vidkv_status check_attention(const Store & keys, const Store & values, const vidkv_attention_args & args);

// vidkv_attention with given kernels. The arguments must have passed check_attention. The result does not depend on
// args.threads, bit for bit. Throws std::bad_alloc.
void attend(const Store & keys, const Store & values, const vidkv_attention_args & args, const Kernels & kernels);

} // namespace vidkv
