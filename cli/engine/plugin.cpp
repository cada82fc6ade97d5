#include "engine/plugin.h"

#include <string>

#include "engine/logs.h"
#include "error.h"
#include "paths.h"

namespace vidkv::cli {

namespace {

ggml_backend_reg_t plugin() {
    static ggml_backend_reg_t loaded = nullptr;
    if (loaded) return loaded;
    loaded = ggml_backend_reg_by_name(VIDKV_REG_NAME); // by GGML_BACKEND_PATH
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

ggml_backend_dev_t kv_device() {
    ggml_backend_reg_t registry = plugin();
    if (ggml_backend_reg_dev_count(registry) == 0) throw Error("the plug-in '" + plugin_path() + "' offers no device");
    return ggml_backend_reg_dev_get(registry, 0);
}

void check_plugin(const char * complaint) {
    if (complaint) throw Error(std::string("the plug-in refuses: ") + complaint);
}

void configure_plugin(const vidkv_params & params, const std::vector<vidkv_layer_loss> & losses) {
    check_plugin(plugin_function<vidkv_configure_t>(VIDKV_PROC_CONFIGURE)(nullptr, &params));
    const auto n = static_cast<int64_t>(losses.size());
    if (n > 0) check_plugin(plugin_function<vidkv_configure_layers_t>(VIDKV_PROC_CONFIGURE_LAYERS)(losses.data(), n));
}

vidkv_store_stats plugin_stats() {
    vidkv_store_stats stats = {};
    plugin_function<vidkv_stats_t>(VIDKV_PROC_STATS)(&stats);
    return stats;
}

const vidkv_state & plugin_state() { return *plugin_function<vidkv_state_t>(VIDKV_PROC_STATE)(); }

void seal_now(int threads) { check_plugin(plugin_function<vidkv_seal_now_t>(VIDKV_PROC_SEAL_NOW)(threads)); }

void protect_cells(const std::vector<int64_t> & cells) {
    const auto protect = plugin_function<vidkv_protect_t>(VIDKV_PROC_PROTECT);
    check_plugin(protect(0, cells.data(), static_cast<int64_t>(cells.size())));
}

const vidkv_inspector & inspector() { return *plugin_function<vidkv_inspector_t>(VIDKV_PROC_INSPECTOR)(); }

std::vector<vidkv_kv_info> live_stores() {
    const vidkv_inspector & look = inspector();
    std::vector<vidkv_kv_info> stores(static_cast<size_t>(look.count()));
    for (size_t i = 0; i < stores.size(); ++i) check_plugin(look.info(static_cast<int32_t>(i), &stores[i]));
    return stores;
}

double packing_seconds() { return plugin_function<vidkv_packing_seconds_t>(VIDKV_PROC_PACKING_SECONDS)(); }

HeldSealing::HeldSealing() { plugin_function<vidkv_hold_sealing_t>(VIDKV_PROC_HOLD_SEALING)(1); }
HeldSealing::~HeldSealing() { plugin_function<vidkv_hold_sealing_t>(VIDKV_PROC_HOLD_SEALING)(0); }

} // namespace vidkv::cli
