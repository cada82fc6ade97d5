// The parameters of KV caches to come: from the environment, or as the host set them through vidkv_configure.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "vidkv/layers.h"
#include "vidkv/vidkv.h"

namespace vidkv_ggml {

struct Settings {
    vidkv_params params;
    std::string name; // for people: "t1.65", or "custom" where single parameters differ from the preset
    std::vector<vidkv_layer_loss> losses =
        {}; // bits are spread by these over the layers of a cache; none: all have the same
};

// How one cache is packed.
struct CacheSettings {
    vidkv_params params; // of layers that have no bits of their own
    std::string name;
    std::map<int32_t, vidkv_params> by_layer = {}; // of those that have

    vidkv_params params_of(int layer) const;
};

// Reads VIDKV_PRESET, VIDKV_KEY_BITS, VIDKV_VALUE_BITS, VIDKV_GROUP_SIZE, VIDKV_RESIDUAL_LENGTH and VIDKV_SINK_TOKENS and
// makes them the current settings. Returns "" or one line that names the variable, its value and what is allowed.
std::string load_settings_from_environment();

// See vidkv_configure_t. Returns "" or one line.
std::string configure(const char * preset, const vidkv_params * override_or_null);

// See vidkv_configure_layers_t.
std::string configure_layers(const vidkv_layer_loss * losses, int64_t n);

// For a cache of these layers, which share the preset's bits: others (with a sliding window) lie in a cache that is not packed.
CacheSettings settings_for(const std::set<int> & layers);

} // namespace vidkv_ggml
