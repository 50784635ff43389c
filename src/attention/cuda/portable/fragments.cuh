// What the portable kernels do with fragments beside multiplying them.
#pragma once

#include "attention/cuda/ptx.cuh"

namespace onepass::portable {

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
