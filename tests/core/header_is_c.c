#include "vidkv/file.h"
#include "vidkv/layers.h"
#include "vidkv/vidkv.h"

/* Compiled as strict C99: the header needs nothing from C++. */
vidkv_status vidkv_header_is_c(vidkv_params * params) { return vidkv_params_from_preset("k1.5v1.58", params); }
