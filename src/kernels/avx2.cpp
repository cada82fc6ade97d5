#include "kernels/avx2.h"

#if defined(VIDKV_HAVE_AVX2)

namespace vidkv {

// Every processor with AVX2 converts half floats (F16C); not every compiler knows how to ask.
bool avx2_supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

} // namespace vidkv

#define VIDKV_TABLE avx2_kernels
#define VIDKV_TABLE_NAME "avx2"
#include "kernels/avx2_body.inc"

#endif
