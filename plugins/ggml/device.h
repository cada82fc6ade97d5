// The device VIDKV, as ggml sees it.
#pragma once

#include "compat.h"
#include "ggml-vidkv.h"

namespace vidkv_ggml {

inline constexpr const char * device_name = VIDKV_DEVICE_NAME;

ggml_backend_dev_t device();

} // namespace vidkv_ggml
