// Tensor core instructions of sm_80 and later, and the fragments that they take.
//
// m16n8k16: D[16, 8] += A[16, 16] B[16, 8]. Lane l = 4 g + t of a warp holds of D rows g and g + 8, columns 2 t and 2 t
// + 1 (elements 0, 1 and 2, 3); of A the same rows, columns 2 t, 2 t + 1 and the same + 8; of B column g.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace onepass::portable {

template <typename T>
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ inline void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two neighbouring elements, the first in the lower half.
template <typename T>
__device__ inline uint32_t pack(float first, float second);
template <>
__device__ inline uint32_t pack<__nv_bfloat16>(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
}
template <>
__device__ inline uint32_t pack<__half>(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
}

template <typename T>
__device__ inline float2 unpack(uint32_t bits);
template <>
__device__ inline float2 unpack<__nv_bfloat16>(uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}
template <>
__device__ inline float2 unpack<__half>(uint32_t bits) {
  return __half22float2(reinterpret_cast<const __half2&>(bits));
}

// Four 8 x 8 matrices of 2-byte elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Lanes 4 g .. 4 g + 3 hold element pairs 0 .. 3 of four columns of 8 elements, x[n] of column n; afterwards lane 4 g +
// t holds all four pairs of column t: 16 bytes that lie side by side.
__device__ inline uint4 gather_columns(const uint32_t (&x)[4]) {
  const int t = threadIdx.x % 4;
  const bool upper = t >= 2, odd = t % 2 == 1;
  const uint32_t own[2] = {upper ? x[2] : x[0], upper ? x[3] : x[1]};
  const uint32_t other[2] = {__shfl_xor_sync(0xffffffffu, upper ? x[0] : x[2], 2),
                             __shfl_xor_sync(0xffffffffu, upper ? x[1] : x[3], 2)};
  // Of the pairs of lanes 0, 1 (low) and 2, 3 (high), each first from the lane of this one's parity.
  const uint32_t low[2] = {upper ? other[0] : own[0], upper ? other[1] : own[1]};
  const uint32_t high[2] = {upper ? own[0] : other[0], upper ? own[1] : other[1]};
  const uint32_t low_got = __shfl_xor_sync(0xffffffffu, odd ? low[0] : low[1], 1);
  const uint32_t high_got = __shfl_xor_sync(0xffffffffu, odd ? high[0] : high[1], 1);
  return {odd ? low_got : low[0], odd ? low[1] : low_got, odd ? high_got : high[0], odd ? high[1] : high_got};
}

}  // namespace onepass::portable
