// AVX2 + FMA + F16C kernels, where the compiler can make them.
#pragma once

#include "kernels/kernels.h"

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define VIDKV_HAVE_AVX2 1

namespace vidkv {

bool avx2_supported();
extern const Kernels avx2_kernels;

} // namespace vidkv

#endif
