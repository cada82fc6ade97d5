// AVX-512 kernels: F, BW, DQ, VL and VNNI (Cascade Lake), or VBMI and VBMI2 as well (Ice Lake, Zen 4 and later), where the compiler can make
// them.
#pragma once

#include "kernels/kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define VIDKV_HAVE_AVX512 1

namespace vidkv {

bool avx512_vnni_supported();
extern const Kernels avx512_vnni_kernels;
bool avx512_supported();
extern const Kernels avx512_kernels;

} // namespace vidkv

#endif
