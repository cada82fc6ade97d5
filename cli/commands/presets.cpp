// vidkv presets.
#include <cstdio>
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "error.h"
#include "vidkv/vidkv.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

struct PresetBits {
    std::string name;
    double k64, v64, k128, v128; // true bits of keys and values at head_dim 64 and 128
};

PresetBits bits_of(const char * name) {
    vidkv_params params;
    if (vidkv_params_from_preset(name, &params) != VIDKV_OK) throw Error(vidkv_last_error());
    return {name, vidkv_true_bits(&params, VIDKV_KEYS, 64), vidkv_true_bits(&params, VIDKV_VALUES, 64),
            vidkv_true_bits(&params, VIDKV_KEYS, 128), vidkv_true_bits(&params, VIDKV_VALUES, 128)};
}

void run_presets(bool as_json) {
    Json presets = Json::array();
    if (!as_json) {
        std::printf("Bits per element of a sealed page, all metadata included.\n\n%-16s %17s %17s\n", "", "head_dim 64",
                    "head_dim 128");
        std::printf("%-16s %8s %8s %8s %8s\n", "preset", "K", "V", "K", "V");
    }
    for (size_t i = 0; const char * name = vidkv_preset_name(i); ++i) {
        const PresetBits bits = bits_of(name);
        presets.push_back({{"name", name},
                           {"k_bits_64", bits.k64},
                           {"v_bits_64", bits.v64},
                           {"k_bits_128", bits.k128},
                           {"v_bits_128", bits.v128}});
        if (!as_json) std::printf("%-16s %8.3f %8.3f %8.3f %8.3f\n", name, bits.k64, bits.v64, bits.k128, bits.v128);
    }
    if (as_json) std::cout << Json{{"presets", presets}}.dump(2) << "\n";
}

} // namespace

void add_presets(CLI::App & app, Command & run) {
    auto as_json = std::make_shared<bool>(false);
    CLI::App * presets = app.add_subcommand("presets", "List the presets of --kv with their true bits");
    presets->add_flag("--json", *as_json, "print one JSON document instead of a table");
    presets->callback([as_json, &run] { run = [as_json] { run_presets(*as_json); }; });
}

} // namespace vidkv::cli
