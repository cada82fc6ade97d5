// Names, checks and true bits of the parameters.
#pragma once

#include "vidkv/vidkv.h"

namespace vidkv {

vidkv_status params_from_preset(const char * name, vidkv_params & out);
const char * preset_name(size_t index);                               // nullptr past the end
vidkv_status check_params(const vidkv_params & params, int head_dim); // head_dim 0: not known yet
double true_bits(const vidkv_params & params, vidkv_side side, int head_dim);

} // namespace vidkv
