// A preset's bits, spread over the layers of a model by what each of them costs (include/vidkv/layers.h).
#pragma once

#include <string>
#include <vector>

#include "vidkv/layers.h"

namespace vidkv {

vidkv_status read_layer_losses(const std::string & path, std::vector<vidkv_layer_loss> & out);
vidkv_status spread_bits(const vidkv_params & params, const std::vector<vidkv_layer_loss> & losses,
                         std::vector<vidkv_layer_bits> & out);

} // namespace vidkv
