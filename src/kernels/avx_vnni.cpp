// AVX2 with the VEX form of vpdpbusd: desktops since 2021 that have no AVX-512.
#include "kernels/vnni.h"

#if defined(VIDKV_HAVE_VNNI)

#include <cpuid.h>

namespace vidkv {

// GCC 12 cannot ask for it: bit 4 of EAX, leaf 7, subleaf 1.
bool avx_vnni_supported() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return avx2_supported() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}

} // namespace vidkv

#define VIDKV_VPDPBUSD "%{vex%} vpdpbusd"
#define VIDKV_VPDPBUSD_TARGET ",avxvnni"
#define VIDKV_TABLE avx_vnni_kernels
#define VIDKV_TABLE_NAME "avxvnni"
#include "kernels/avx2_body.inc"

#endif
