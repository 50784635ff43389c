// The norm before a product, by each thread block of the kernel for few rows for itself.
#pragma once

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/rms_norm.cuh"
#include "kernels/cuda/stream_linear_plan.h"
#include "kernels/cuda/stream_linear_ptx.cuh"

namespace onepass {

// The norm of rows of x into shared memory, with the sums of run_rms_norm_cuda in their order: its thread's 8 columns
// are a lane's here, and its warps' sums go the same way to a row's.
template <typename T>
struct StreamNorm {
  static constexpr int kPieces = kStreamNormCols / 8 / kStreamThreads;

  static __device__ inline int column(int piece) { return (piece * kStreamThreads + threadIdx.x) * 8; }

  // Brings the weights into the L1 cache: registers are what lets a block of the next kernel stand beside two of this.
  static __device__ inline void touch_weight(const CudaLinearParams& p) {
#pragma unroll
    for (int n = 0; n < kPieces; ++n) {
      if (column(n) < p.cols) asm volatile("" ::"f"(__ldg(p.norm + column(n))) : "memory");
    }
  }

  // To rows `pitch` bytes apart that are `padded_cols` long. `of_warps`: [2][32], for this alone until the block's next
  // barrier.
  static __device__ inline void run(const CudaLinearParams& p, int64_t first_x, int x_rows, int padded_cols,
                                    uint32_t to, int pitch, float* of_warps) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warps = (static_cast<int>(p.cols) / 8 + 31) / 32;
    for (int row = 0; row < x_rows; ++row) {
      const float* from = static_cast<const float*>(p.x) + (first_x + row) * p.x_row_stride;
      float x[kPieces][8];
#pragma unroll
      for (int n = 0; n < kPieces; ++n) {
        if (column(n) < p.cols) load_8_floats(from + column(n), x[n]);
      }
      float* const sums = of_warps + row % 2 * 32;
#pragma unroll
      for (int n = 0; n < kPieces; ++n) {
        if (n * kStreamWarps + warp >= warps) continue;
        float sum = 0.0f;
        if (column(n) < p.cols) {
#pragma unroll
          for (int i = 0; i < 8; ++i) sum += x[n][i] * x[n][i];
        }
        sum = sum_over_lanes<32>(sum);
        if (lane == 0) sums[n * kStreamWarps + warp] = sum;
      }
      __syncthreads();
      const float factor = rms_norm_factor(sum_over_lanes<32>(lane < warps ? sums[lane] : 0.0f), p.cols, p.norm_eps);
#pragma unroll
      for (int n = 0; n < kPieces; ++n) {
        if (column(n) >= padded_cols) continue;
        Piece<T, 8> piece = {};
        if (column(n) < p.cols) {
          const float4 low = __ldg(reinterpret_cast<const float4*>(p.norm + column(n)));
          const float4 high = __ldg(reinterpret_cast<const float4*>(p.norm + column(n)) + 1);
          const float weight[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
          for (int i = 0; i < 8; ++i) piece.values[i] = narrow<T>(x[n][i] * (factor * weight[i]));
        }
        store_shared_16(to + row * pitch + column(n) * 2, *reinterpret_cast<const uint4*>(&piece));
      }
    }
  }
};

}  // namespace onepass
