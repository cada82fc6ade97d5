/* Bits by layer: a model loses far more by some layers' keys and values than by others', a hundred times and more, and its layers are
 * what they are whatever it reads. A layers file says what packing each side of each layer costs by itself; a preset's bits, spread by it
 * so that the sum of these losses is least, do as little as half the harm at the same size (docs/fidelity.md, "Bits by layer").
 *
 * It is a text: lines that begin with # are remarks, every other line has a layer's number and its losses,
 *
 *     # layer keys values
 *     0 0.00024 0.00001
 *     1 0.00004 0.00001
 *
 * The losses are KL divergences (nats) of the model's predictions when this side of this layer alone is packed, each with the same
 * codec; only their ratios count. `vidkv eval layers` measures them. */
#ifndef VIDKV_LAYERS_H
#define VIDKV_LAYERS_H

#include "vidkv/vidkv.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vidkv_layer_loss {
    int32_t layer;
    double keys, values; /* 0 or more */
} vidkv_layer_loss;

typedef struct vidkv_layer_bits {
    int32_t layer;
    float keys, values; /* key_bits and value_bits of its vidkv_params */
} vidkv_layer_bits;

/* Reads a layers file, in rising order of the layers: *layers says how many it has, and `out` gets the first `most` of them (NULL and 0 to
 * ask how many). VIDKV_E_IO, or VIDKV_E_FORMAT with the line that is wrong. */
VIDKV_API vidkv_status vidkv_layer_losses_read(const char * path, vidkv_layer_loss * out, int32_t most, int32_t * layers);

/* Spreads the bits of trellis `params` over these layers: out has room for as many. Keys and values share them; none gets less
 * than half of the preset's bits. The mean of all is at most that of key_bits and value_bits, and so is the mean of the true bits. A
 * side in f16 stays so. The result is the same on every machine. */
VIDKV_API vidkv_status vidkv_spread_bits_sized(const vidkv_params * params, size_t params_size,
                                               const vidkv_layer_loss * losses, int32_t layers, vidkv_layer_bits * out);
static inline vidkv_status vidkv_spread_bits(const vidkv_params * params, const vidkv_layer_loss * losses, int32_t layers,
                                             vidkv_layer_bits * out) {
    return vidkv_spread_bits_sized(params, sizeof(*params), losses, layers, out);
}

#ifdef __cplusplus
}
#endif
#endif
