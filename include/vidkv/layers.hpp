// C++ over layers.h. Header only.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "vidkv/layers.h"
#include "vidkv/vidkv.hpp"

namespace vidkv {

// What a layers file says. Throws Error.
inline std::vector<vidkv_layer_loss> read_layer_losses(const std::string & path) {
    int32_t n = 0;
    check(vidkv_layer_losses_read(path.c_str(), nullptr, 0, &n));
    std::vector<vidkv_layer_loss> losses(static_cast<size_t>(n));
    check(vidkv_layer_losses_read(path.c_str(), losses.data(), n, &n));
    return losses;
}

// The parameters of each layer that `losses` names, which share the bits of `params`. Throws Error.
inline std::map<int32_t, vidkv_params> params_by_layer(const vidkv_params & params,
                                                       const std::vector<vidkv_layer_loss> & losses) {
    std::vector<vidkv_layer_bits> bits(losses.size());
    if (!losses.empty()) check(vidkv_spread_bits(&params, losses.data(), static_cast<int32_t>(losses.size()), bits.data()));
    std::map<int32_t, vidkv_params> own;
    for (const vidkv_layer_bits & each : bits) {
        vidkv_params & layer = own[each.layer] = params;
        layer.key_bits = each.keys;
        layer.value_bits = each.values;
    }
    return own;
}

// The same where a cache has these layers alone: Layers is a container of their numbers, with contains().
template <typename Layers>
std::map<int32_t, vidkv_params> params_by_layer(const vidkv_params & params, std::vector<vidkv_layer_loss> losses,
                                                const Layers & layers) {
    std::erase_if(losses, [&](const vidkv_layer_loss & each) { return !layers.contains(each.layer); });
    return params_by_layer(params, losses);
}

} // namespace vidkv
