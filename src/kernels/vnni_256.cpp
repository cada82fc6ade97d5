// The same as avx_vnni.cpp with the EVEX form of vpdpbusd, for its sake: machines with AVX-512 test its body.
#include "kernels/vnni.h"

#if defined(VIDKV_HAVE_VNNI)

namespace vidkv {

bool vnni_256_supported() {
    return avx2_supported() && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

} // namespace vidkv

#define VIDKV_VPDPBUSD "%{evex%} vpdpbusd"
#define VIDKV_VPDPBUSD_TARGET ",avx512vl,avx512vnni"
#define VIDKV_TABLE vnni_256_kernels
#define VIDKV_TABLE_NAME "vnni256"
#include "kernels/avx2_body.inc"

#endif
