// AVX-512 with VNNI and without VBMI: Cascade Lake, Cooper Lake.
#include "kernels/avx512.h"

#if defined(VIDKV_HAVE_AVX512)

namespace vidkv {

bool avx512_vnni_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

} // namespace vidkv

#define VIDKV_TABLE avx512_vnni_kernels
#define VIDKV_TABLE_NAME "avx512vnni"
#include "kernels/avx512_body.inc"

#endif
