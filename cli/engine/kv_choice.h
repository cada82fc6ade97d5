// How the cache is kept (--kv).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "llama.h"
#include "vidkv/vidkv.h"

namespace vidkv::cli {

struct KvChoice {
    std::string name;
    bool stock = false;             // llama.cpp's own cache, without the plug-in
    ggml_type type = GGML_TYPE_F16; // of a stock cache
    vidkv_params params = {};       // of a packed one
};

struct KvReport {
    uint64_t bytes = 0;     // held for the tokens in the cache
    uint64_t bytes_f16 = 0; // what they would take in f16
    double true_bits = 0;   // per element of a sealed page, mean of K and V
};

// A preset ("k2v2"), or "stock", "q8_0", "q4_0": llama.cpp's own cache types. Throws Error for another name.
KvChoice parse_kv(const std::string & name);
// --protect: that share of the tokens gets more bits for its values. Throws Error where the preset cannot.
void protect_share(KvChoice & kv, double share);
// Mean of K and V at that head_dim.
double true_bits(const KvChoice & kv, int head_dim);
// For --kv's help: "f16, k2v2, ...".
std::string kv_names();

} // namespace vidkv::cli
