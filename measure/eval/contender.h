// What a measurement compares: a preset of VidKV in the plug-in, or a reference codec (another project's) simulated on the
// rows of an f16 cache.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/kv_choice.h"
#include "eval/reference_codecs/reference_codec.h"

namespace vidkv::cli {

struct Contender {
    std::string name;
    KvChoice kv; // of the cache that runs; f16 for a reference codec
    const ReferenceCodec * reference = nullptr;
    // Of a layer and side (vidkv_side) that is packed by itself; layer < 0: all are.
    struct Alone {
        int layer = -1, side = 0;
    } alone = {};
};

// A preset, a reference codec ("kivi2"), "stock", or one of these without sink tokens ("kivi2-nosink").
// Sink tokens and residual window are those of kv.params for both kinds. Throws Error for another name.
Contender parse_contender(const std::string & name);
// Every listed preset and every reference codec, these also without sink tokens.
std::vector<std::string> all_contender_names();

// The queries of a layer that a measurement has heard: [tokens][heads][head_dim].
struct HeardQueries {
    int heads = 0, head_dim = 0;
    std::vector<float> rows;
};
using QueriesByLayer = std::map<int, HeardQueries>;

// What packing a cache came to, at this moment.
struct Packed {
    double k_bits = 16, v_bits = 16; // per element of what is packed; 16 if nothing is
    uint64_t bytes = 0;              // held by the whole cache
};

// Packs what is old enough of the one live cache, whose first `cells` cells are written: a preset's stores seal; for a
// reference codec, rows are replaced by what its codes decode to; stock has nothing to do. queries: for a codec that is calibrated
// on them; without them it throws Error.
void pack(const Contender & contender, int64_t cells, int threads, const QueriesByLayer * queries = nullptr);
// Of a cache that holds `cells` cells, the first `packed_cells` of which were written before pack().
Packed measure(const Contender & contender, int64_t packed_cells, int64_t cells);
// How many of the first `cells` cells pack() packs, counted from cell 0; the sink tokens are among them.
int64_t packed_prefix(const Contender & contender, int64_t cells);

// f16 rows of a live store as f32, [cells][channels].
std::vector<float> read_rows(int store, int64_t first, int64_t cells, int channels);

} // namespace vidkv::cli
