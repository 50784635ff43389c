// The instructions of the decode kernel that C++ has no words for.
#pragma once

#include <cstdint>
#include <type_traits>

#include "tensor/cuda/ptx.cuh"

namespace onepass::hopper_decode {

template <bool kBf16>
using Element = std::conditional_t<kBf16, __nv_bfloat16, __half>;

// Copies 16 bytes from global to shared memory in the background; writes zeros, and reads nothing, unless `valid`.
__device__ __forceinline__ void copy_16_async(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the newest kNewest groups of this thread's copies have landed.
template <int kNewest>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// Asks for `bytes` of memory to be brought into the L2 cache, where all writes meet: harmless whatever the address
// holds by then. (prefetch.global.L2, a line at a time, is issued in half the time, but the kernel then takes 1 us
// more.)
__device__ __forceinline__ void prefetch_to_l2(const void* global, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

// Has `x` computed before whatever volatile instruction follows, and what follows from it not before.
__device__ __forceinline__ void keep_here(int64_t& x) { asm volatile("" : "+l"(x)); }
__device__ __forceinline__ void keep_here(const int*& x) { asm volatile("" : "+l"(x)); }
__device__ __forceinline__ void keep_here(float& x) { asm volatile("" : "+f"(x)); }
__device__ __forceinline__ void keep_here(int& x) { asm volatile("" : "+r"(x)); }

// The transpose of an 8x8 matrix of 16-bit numbers that lies across the warp's registers.
__device__ __forceinline__ uint32_t transpose(uint32_t matrix) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(matrix));
  return transposed;
}

// Loads and stores between blocks: past the L1 cache, in no order, each of them whole (16 bytes are one number).
__device__ __forceinline__ float4 load_relaxed(const float4* address) {
  uint64_t low, high;
  asm volatile("{.reg .b128 x; ld.relaxed.gpu.global.b128 x, [%2]; mov.b128 {%0, %1}, x;}"
               : "=l"(low), "=l"(high)
               : "l"(address)
               : "memory");
  return make_float4(__uint_as_float(static_cast<uint32_t>(low)), __uint_as_float(static_cast<uint32_t>(low >> 32)),
                     __uint_as_float(static_cast<uint32_t>(high)), __uint_as_float(static_cast<uint32_t>(high >> 32)));
}

__device__ __forceinline__ uint64_t two_words(float low, float high) {
  return __float_as_uint(low) | static_cast<uint64_t>(__float_as_uint(high)) << 32;
}

__device__ __forceinline__ void store_relaxed(float4* address, float4 x) {
  asm volatile("{.reg .b128 x; mov.b128 x, {%1, %2}; st.relaxed.gpu.global.b128 [%0], x;}" ::"l"(address),
               "l"(two_words(x.x, x.y)), "l"(two_words(x.z, x.w))
               : "memory");
}

__device__ __forceinline__ float2 load_relaxed(const float2* address) {
  uint64_t both;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(both) : "l"(address) : "memory");
  return make_float2(__uint_as_float(static_cast<uint32_t>(both)), __uint_as_float(static_cast<uint32_t>(both >> 32)));
}

__device__ __forceinline__ void store_relaxed(float2* address, float2 x) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(address), "l"(two_words(x.x, x.y)) : "memory");
}

__device__ __forceinline__ int load_relaxed(const int* address) {
  int x;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(address) : "memory");
  return x;
}

}  // namespace onepass::hopper_decode
