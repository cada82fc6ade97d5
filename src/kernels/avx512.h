// AVX-512 kernels: F, BW, DQ, VL, VBMI and VNNI (Ice Lake, Zen 4 and later), where the compiler can make them.
#pragma once

#include "kernels/kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define VIDKV_HAVE_AVX512 1

namespace vidkv {

bool avx512_supported();
extern const Kernels avx512_kernels;

} // namespace vidkv

#endif
