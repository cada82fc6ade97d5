#include "kernels/avx512.h"

#if defined(VIDKV_HAVE_AVX512)

namespace vidkv {

bool avx512_supported() {
    return avx512_vnni_supported() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("bmi2");
}

} // namespace vidkv

#define VIDKV_VBMI
#define VIDKV_TABLE avx512_kernels
#define VIDKV_TABLE_NAME "avx512"
#include "kernels/avx512_body.inc"

#endif
