// AVX2 kernels with vpdpbusd on 256 bits, in its two encodings, where compiler and assembler can make them.
#pragma once

#include "kernels/avx2.h"

#if defined(VIDKV_HAVE_AVX2) && defined(__x86_64__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define VIDKV_HAVE_VNNI 1

namespace vidkv {

bool avx_vnni_supported();
extern const Kernels avx_vnni_kernels;
bool vnni_256_supported();
extern const Kernels vnni_256_kernels;

} // namespace vidkv

#endif
