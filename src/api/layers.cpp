// The C API of bits by layer.
#include <algorithm>
#include <vector>

#include "api/guarded.h"
#include "api/sized.h"
#include "codec/layer_bits.h"

vidkv_status vidkv_layer_losses_read(const char * path, vidkv_layer_loss * out, int32_t most, int32_t * layers) {
    return vidkv::guarded(
        [&] {
            std::vector<vidkv_layer_loss> losses;
            if (vidkv_status status = vidkv::read_layer_losses(path, losses)) return status;
            *layers = static_cast<int32_t>(losses.size());
            if (out) std::copy_n(losses.begin(), std::clamp(most, 0, *layers), out);
            return VIDKV_OK;
        },
        path, layers);
}

vidkv_status vidkv_spread_bits_sized(const vidkv_params * params, size_t params_size, const vidkv_layer_loss * losses,
                                     int32_t layers, vidkv_layer_bits * out) {
    return vidkv::guarded(
        [&] {
            vidkv_params all;
            if (vidkv_status status = vidkv::copy_in(params, params_size, all)) return status;
            std::vector<vidkv_layer_bits> spread;
            const std::vector<vidkv_layer_loss> given(losses, losses + std::max(layers, 0));
            if (vidkv_status status = vidkv::spread_bits(all, given, spread)) return status;
            std::copy(spread.begin(), spread.end(), out);
            return VIDKV_OK;
        },
        params, losses, out);
}
