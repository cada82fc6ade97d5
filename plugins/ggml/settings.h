// The parameters of KV caches to come: from the environment, or as the host set them through vidkv_configure.
#pragma once

#include <string>

#include "vidkv/vidkv.h"

namespace vidkv_ggml {

struct Settings {
    vidkv_params params;
    std::string name; // for people: "t1.65", or "custom" where single parameters differ from the preset
};

// Reads VIDKV_PRESET, VIDKV_KEY_BITS, VIDKV_VALUE_BITS, VIDKV_GROUP_SIZE, VIDKV_RESIDUAL_LENGTH and VIDKV_SINK_TOKENS and
// makes them the current settings. Returns "" or one line that names the variable, its value and what is allowed.
std::string load_settings_from_environment();

// See vidkv_configure_t. Returns "" or one line.
std::string configure(const char * preset, const vidkv_params * override_or_null);

Settings current_settings();

} // namespace vidkv_ggml
