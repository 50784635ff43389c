// The sums of a root mean square normalisation, for the kernels that normalise on the way: in one order everywhere, so
// that a number's bits do not depend on which of them computed it.
#pragma once

#include <cstdint>

namespace onepass {

template <int kLanes>
__device__ inline float sum_over_lanes(float sum) {
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  return sum;
}

// What a row with this sum of squares is multiplied by.
__device__ inline float rms_norm_factor(float sum, int64_t cols, float eps) {
  return rsqrtf(sum / static_cast<float>(cols) + eps);
}

}  // namespace onepass
