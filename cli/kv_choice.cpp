#include "kv_choice.h"

#include <array>

#include "error.h"
#include "ggml-vidkv.h"
#include "logs.h"
#include "paths.h"

namespace vidkv::cli {

namespace {

struct StockType {
    const char * name;
    ggml_type type;
};
constexpr std::array<StockType, 3> STOCK_TYPES = {
    {{"stock", GGML_TYPE_F16}, {"q8_0", GGML_TYPE_Q8_0}, {"q4_0", GGML_TYPE_Q4_0}}};

ggml_backend_reg_t plugin() {
    static ggml_backend_reg_t loaded = nullptr;
    if (loaded) return loaded;
    const std::string path = plugin_path();
    if (path.empty())
        throw Error("libggml-vidkv.so is not beside this program: set VIDKV_PLUGIN to its path, or use --kv stock");
    forget_logged_error();
    loaded = ggml_backend_load(path.c_str());
    if (!loaded) {
        const std::string reason = logged_error();
        throw Error("cannot load the plug-in '" + path + "'" + (reason.empty() ? "" : " (" + reason + ")") +
                    ": build it for this llama.cpp");
    }
    return loaded;
}

template <typename Function> Function plugin_function(const char * name) {
    void * address = ggml_backend_reg_get_proc_address(plugin(), name);
    if (!address) throw Error("the plug-in '" + plugin_path() + "' is of another version: it has no " + name);
    return reinterpret_cast<Function>(address);
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
    if (vidkv_params_from_preset(name.c_str(), &kv.params) != VIDKV_OK)
        throw Error("no preset '" + name + "': --kv takes one of " + kv_names());
    return kv;
}

double true_bits(const KvChoice & kv, int head_dim) {
    if (kv.stock) return 8.0 * static_cast<double>(ggml_type_size(kv.type)) / static_cast<double>(ggml_blck_size(kv.type));
    return (vidkv_true_bits(&kv.params, VIDKV_KEYS, head_dim) + vidkv_true_bits(&kv.params, VIDKV_VALUES, head_dim)) / 2;
}

std::string kv_names() {
    std::string names;
    for (size_t i = 0; const char * name = vidkv_preset_name(i); ++i) names += std::string(name) + ", ";
    for (const StockType & stock : STOCK_TYPES) names += std::string(stock.name) + ", ";
    return names.substr(0, names.size() - 2);
}

ggml_backend_dev_t kv_device() {
    ggml_backend_reg_t registry = plugin();
    if (ggml_backend_reg_dev_count(registry) == 0) throw Error("the plug-in '" + plugin_path() + "' offers no device");
    return ggml_backend_reg_dev_get(registry, 0);
}

void configure_plugin(const KvChoice & kv) {
    const char * problem = plugin_function<vidkv_configure_t>(VIDKV_PROC_CONFIGURE)(nullptr, &kv.params);
    if (problem) throw Error(std::string("the plug-in refuses preset ") + kv.name + ": " + problem);
}

vidkv_store_stats plugin_stats() {
    vidkv_store_stats stats = {};
    plugin_function<vidkv_stats_t>(VIDKV_PROC_STATS)(&stats);
    return stats;
}

} // namespace vidkv::cli
