#include "engine/kv_choice.h"

#include <array>
#include <cstdio>
#include <filesystem>

#include "error.h"
#include "paths.h"
#include "vidkv/layers.hpp"

namespace vidkv::cli {

namespace {

struct StockType {
    const char * name;
    ggml_type type;
};
constexpr std::array<StockType, 3> STOCK_TYPES = {
    {{"stock", GGML_TYPE_F16}, {"q8_0", GGML_TYPE_Q8_0}, {"q4_0", GGML_TYPE_Q4_0}}};

void append(std::string & list, const char * name) { list += (list.empty() ? "" : ", ") + std::string(name); }

// A file, or the name of a model that comes with one.
std::string layers_file(const std::string & name) {
    const bool is_file = name.find('/') != std::string::npos || name.ends_with(".layers") || std::filesystem::exists(name);
    return is_file ? name : script_path("models/layers/" + name + ".layers");
}

void spread(KvChoice & kv, const std::string & name) {
    const std::string file = layers_file(name);
    try {
        kv.losses = vidkv::read_layer_losses(file);
    } catch (const vidkv::Error & error) {
        throw Error(error.what());
    }
    try {
        vidkv::params_by_layer(kv.params, kv.losses);
    } catch (const vidkv::Error & error) {
        throw UsageError("--kv " + kv.name + ": " + error.what());
    }
}

} // namespace

KvChoice parse_kv(const std::string & name) {
    KvChoice kv;
    kv.name = name;
    for (const StockType & stock : STOCK_TYPES) {
        if (name == stock.name) {
            kv.stock = true;
            kv.type = stock.type;
            return kv;
        }
    }
    const size_t at = name.find('@');
    if (vidkv_params_from_preset(name.substr(0, at).c_str(), &kv.params) != VIDKV_OK)
        throw UsageError("no preset '" + name + "': --kv takes one of " + kv_names());
    if (at != std::string::npos) spread(kv, name.substr(at + 1));
    return kv;
}

std::string plugin_preset(const std::string & kv_name) {
    const size_t at = kv_name.find('@');
    return at == std::string::npos ? kv_name : kv_name.substr(0, at + 1) + layers_file(kv_name.substr(at + 1));
}

void protect_share(KvChoice & kv, double share) {
    if (kv.stock) throw Error("--protect needs a packed cache: --kv " + kv.name + " is llama.cpp's own");
    kv.params.protect = static_cast<float>(share);
    if (vidkv_params_check(&kv.params, 0) != VIDKV_OK)
        throw Error("preset " + kv.name + " with --protect: " + vidkv_last_error());
    std::array<char, 32> suffix;
    std::snprintf(suffix.data(), suffix.size(), "-stp%g", share);
    if (kv.name.find("-stp") == std::string::npos) kv.name += suffix.data();
}

double true_bits(const KvChoice & kv, int head_dim) {
    if (kv.stock) return 8.0 * static_cast<double>(ggml_type_size(kv.type)) / static_cast<double>(ggml_blck_size(kv.type));
    return (vidkv_true_bits(&kv.params, VIDKV_KEYS, head_dim) + vidkv_true_bits(&kv.params, VIDKV_VALUES, head_dim)) / 2;
}

bool is_the_papers(const vidkv_params & params) {
    return params.key_bits < 16 && params.key_codec == VIDKV_CODEC_PAPER && params.value_codec == VIDKV_CODEC_PAPER;
}

std::string kv_names() {
    std::string ours, papers, stock;
    for (size_t i = 0; const char * name = vidkv_preset_name(i); ++i) {
        vidkv_params params;
        if (vidkv_params_from_preset(name, &params) != VIDKV_OK || params.key_bits >= 16) continue;
        append(is_the_papers(params) ? papers : ours, name);
    }
    for (const StockType & type : STOCK_TYPES) append(stock, type.name);
    return ours + "; the paper's " + papers + "; f16; llama.cpp's own " + stock;
}

} // namespace vidkv::cli
