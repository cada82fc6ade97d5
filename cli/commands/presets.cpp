// vidkv presets.
#include <cstdio>
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "engine/kv_choice.h"
#include "error.h"
#include "vidkv/vidkv.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

enum class Family { reference, trellis, paper };

struct Preset {
    std::string name;
    Family family;
    double k64, v64, k128, v128; // true bits of keys and values at head_dim 64 and 128
};

Preset preset_named(const char * name) {
    vidkv_params params;
    if (vidkv_params_from_preset(name, &params) != VIDKV_OK) throw Error(vidkv_last_error());
    return {name,
            params.key_bits >= 16   ? Family::reference
            : is_the_papers(params) ? Family::paper
                                    : Family::trellis,
            vidkv_true_bits(&params, VIDKV_KEYS, 64),
            vidkv_true_bits(&params, VIDKV_VALUES, 64),
            vidkv_true_bits(&params, VIDKV_KEYS, 128),
            vidkv_true_bits(&params, VIDKV_VALUES, 128)};
}

std::vector<Preset> all_presets() {
    std::vector<Preset> presets;
    for (size_t i = 0; const char * name = vidkv_preset_name(i); ++i) presets.push_back(preset_named(name));
    return presets;
}

void print_family(const std::vector<Preset> & presets, Family family, const char * title) {
    std::printf("\n%s\n", title);
    for (const Preset & preset : presets) {
        if (preset.family != family) continue;
        std::printf("  %-16s %8.3f %8.3f %8.3f %8.3f%s\n", preset.name.c_str(), preset.k64, preset.v64, preset.k128,
                    preset.v128, preset.name == DEFAULT_KV ? "   the default" : "");
    }
}

void print_table(const std::vector<Preset> & presets) {
    std::printf("Bits per element of a sealed page, all metadata included.\n\n");
    std::printf("  %-16s %17s %17s\n", "", "head_dim 64", "head_dim 128");
    std::printf("  %-16s %8s %8s %8s %8s\n", "preset", "K", "V", "K", "V");
    print_family(presets, Family::trellis, "VidKV's own");
    print_family(presets, Family::paper, "The paper's (arXiv 2503.16257), with the released code's defects mended");
    print_family(presets, Family::reference, "Reference");
    std::printf(
        "\nAny mix of key and value codes is a preset too (kt1.5v2, k2vt1.5). -stp<share> behind a name gives the\n"
        "values of the salient tokens more bits, as the paper does (t1.65-stp0.2). @FILE behind a trellis preset spends\n"
        "its bits by what each layer costs the model (vidkv eval layers): as little as half the loss at the same size.\n");
}

const char * family_name(Family family) {
    return family == Family::paper ? "paper" : family == Family::trellis ? "trellis" : "reference";
}

void print_json(const std::vector<Preset> & presets) {
    Json list = Json::array();
    for (const Preset & preset : presets) {
        list.push_back({{"name", preset.name},
                        {"family", family_name(preset.family)},
                        {"k_bits_64", preset.k64},
                        {"v_bits_64", preset.v64},
                        {"k_bits_128", preset.k128},
                        {"v_bits_128", preset.v128}});
    }
    std::cout << Json{{"default", DEFAULT_KV}, {"presets", list}}.dump(2) << "\n";
}

} // namespace

void add_presets(CLI::App & app, Command & run) {
    auto as_json = std::make_shared<bool>(false);
    CLI::App * presets = app.add_subcommand("presets", "List the presets of --kv with their true bits");
    presets->add_flag("--json", *as_json, "print one JSON document instead of a table");
    presets->callback(
        [as_json, &run] { run = [as_json] { *as_json ? print_json(all_presets()) : print_table(all_presets()); }; });
}

} // namespace vidkv::cli
