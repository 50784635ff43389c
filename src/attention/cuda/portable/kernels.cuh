// Launches of the two kernels for one pair of head dimensions; hd*.cu define a pair each.
#pragma once

#include <cuda_runtime.h>

#include "attention/cuda/portable/decode_kernel.cuh"
#include "attention/cuda/portable/launch.h"
#include "attention/cuda/portable/prefill_kernel.cuh"

namespace onepass::portable {

template <auto kKernel>
cudaError_t launch_kernel(const KernelParams& p, int blocks, int shared_bytes, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  kKernel<<<blocks, kThreads, shared_bytes, stream>>>(p);
  return cudaGetLastError();
}

template <typename T, int kDim, int kDimV, int kRowTiles>
constexpr Kernel prefill_of() {
  using Tile = PrefillTile<kDim, kDimV, kRowTiles>;
  return {.rows = Tile::kRows,
          .shared_bytes = Tile::kSharedBytes,
          .launch = launch_kernel<prefill_kernel<T, kDim, kDimV, kRowTiles>>};
}

template <typename T, int kDim, int kDimV>
constexpr KernelSet kernel_set() {
  using Decode = DecodeTile<kDim, kDimV>;
  return {.decode = {.rows = Decode::kRows,
                     .shared_bytes = Decode::kSharedBytes,
                     .launch = launch_kernel<decode_kernel<T, kDim, kDimV>>},
          .fold_floats = Decode::kFoldFloats,
          .extend = prefill_of<T, kDim, kDimV, 1>(),
          .prefill = prefill_of<T, kDim, kDimV, kMostRowTiles<kDimV>>()};
}

}  // namespace onepass::portable

// ONEPASS_PORTABLE_KERNELS(192, 128) defines the sets of both dtypes.
#define ONEPASS_PORTABLE_KERNELS(dim, dim_v)                                         \
  namespace onepass::portable {                                                      \
  const KernelSet kBf16Dim##dim##x##dim_v = kernel_set<__nv_bfloat16, dim, dim_v>(); \
  const KernelSet kFp16Dim##dim##x##dim_v = kernel_set<__half, dim, dim_v>();        \
  }
