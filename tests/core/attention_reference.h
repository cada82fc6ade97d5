// Attention in double precision on the same packed bytes, with the error that f32 kernels may make (docs/numerics.md).
#pragma once

#include <vector>

#include "cache/store.h"

namespace vidkv::test {

struct Reference {
    // [tokens][heads][head_dim of V], dense
    std::vector<double> out;
    std::vector<double> bound; // largest |f32 result - out|; 0 where a query sees nothing: that must be exactly 0
};

Reference reference_attention(const Store & keys, const Store & values, const vidkv_attention_args & args);

} // namespace vidkv::test
