// How the cache is kept (--kv).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "llama.h"
#include "vidkv/layers.h"
#include "vidkv/vidkv.h"

namespace vidkv::cli {

struct KvChoice {
    std::string name;
    bool stock = false;                   // llama.cpp's own cache, without the plug-in
    ggml_type type = GGML_TYPE_F16;       // of a stock cache
    vidkv_params params = {};             // of a packed one
    std::vector<vidkv_layer_loss> losses; // params' bits are spread by these over the layers; none: all have the same
};

struct KvReport {
    uint64_t bytes = 0;     // held for the tokens in the cache
    uint64_t bytes_f16 = 0; // what they would take in f16
    bool packed = false;    // some of them; a cache that is short is all window
    double true_bits = 0;   // per element of a sealed page, mean of K and V
};

// How the cache is kept unless --kv says otherwise; the plug-in and Python take the same.
constexpr const char * DEFAULT_KV = "t1.65";

// A preset ("t1.65"), one with its bits spread over layers ("t1.65@FILE", vidkv/layers.h; FILE may be the name of a model that such a
// file is there for), or "stock", "q8_0", "q4_0": llama.cpp's own cache types. Throws UsageError for another name.
KvChoice parse_kv(const std::string & name);
// The same as VIDKV_PRESET takes it: with the path of the layers file.
std::string plugin_preset(const std::string & kv_name);
// --protect: that share of the tokens gets more bits for its values. Throws Error where the preset cannot.
void protect_share(KvChoice & kv, double share);
// Mean of K and V at that head_dim.
double true_bits(const KvChoice & kv, int head_dim);
// Whether a preset is one of the paper's (arXiv 2503.16257): its formulas, with the released code's defects mended.
bool is_the_papers(const vidkv_params & params);
// All names, by family: "t2.2, ...; the paper's k2v2, ...; f16; llama.cpp's own stock, q8_0, q4_0".
std::string kv_names();

} // namespace vidkv::cli
