// What a kernel asks of its device: byte permutation, warp and block operations, tensor cores, asynchronous copies. Compiled for the CPU,
// these are the emulation's, so that kernels can be tried without a GPU.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "cuda/emulation.h"
#else
#include <cuda_fp16.h>

#define VIDKV_DEVICE __device__ __forceinline__
#define VIDKV_UNROLL _Pragma("unroll")
#define VIDKV_PRAGMA(text) _Pragma(#text)
#define VIDKV_UNROLL_BY(n) VIDKV_PRAGMA(unroll n)

namespace vidkv::cuda {

VIDKV_DEVICE uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
VIDKV_DEVICE int dot4(uint32_t a, uint32_t b, int sum) { return __dp4a(static_cast<int>(a), static_cast<int>(b), sum); }
VIDKV_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
VIDKV_DEVICE float half_value(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
VIDKV_DEVICE uint16_t half_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }
VIDKV_DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <typename T> VIDKV_DEVICE T from_lane(T x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
template <typename T> VIDKV_DEVICE T from_lane_xor(T x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
VIDKV_DEVICE void warp_sync() { __syncwarp(); }
VIDKV_DEVICE void block_sync() { __syncthreads(); }

// c [16 x 8] += a [16 x 16], unsigned, times b [16 x 8], signed; each lane holds its part of each (PTX, mma.m16n8k16).
VIDKV_DEVICE void multiply(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
}

// 16 bytes from device memory to shared memory, both aligned; there when wait_copies says so.
VIDKV_DEVICE void copy_16(void * shared, const void * global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
}
VIDKV_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the newest `but` groups have arrived.
template <int but> VIDKV_DEVICE void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(but) : "memory"); }

// What another block of this launch wrote.
VIDKV_DEVICE float read_shared_result(const float * at) { return __ldcg(at); }
VIDKV_DEVICE void publish() { __threadfence(); }
VIDKV_DEVICE int count_up(int * counter) { return atomicAdd(counter, 1); }

} // namespace vidkv::cuda
#endif
