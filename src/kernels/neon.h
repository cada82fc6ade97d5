// NEON kernels with the dot product extension (Armv8.2), where the compiler can make them.
#pragma once

#include "kernels/kernels.h"

#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define VIDKV_HAVE_NEON 1

namespace vidkv {

bool neon_supported();
extern const Kernels neon_kernels;

} // namespace vidkv

#endif
