// The portable kernels of one dtype and pair of head dimensions, as the host sees them.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/cuda/portable/kernel_params.h"

namespace onepass::portable {

using LaunchKernel = cudaError_t (*)(const KernelParams& params, int blocks, int shared_bytes, cudaStream_t stream);

struct KernelSet {
  int decode_rows = 0;  // packed rows of a tile
  int decode_shared_bytes = 0;
  int fold_floats = 0;  // of one thread block, in KernelParams::fold_state
  int prefill_rows = 0;
  int prefill_shared_bytes = 0;
  LaunchKernel decode = nullptr;
  LaunchKernel prefill = nullptr;
};

extern const KernelSet kBf16Dim64x64, kFp16Dim64x64;
extern const KernelSet kBf16Dim80x80, kFp16Dim80x80;
extern const KernelSet kBf16Dim96x96, kFp16Dim96x96;
extern const KernelSet kBf16Dim128x128, kFp16Dim128x128;
extern const KernelSet kBf16Dim192x128, kFp16Dim192x128;
extern const KernelSet kBf16Dim192x192, kFp16Dim192x192;
extern const KernelSet kBf16Dim256x256, kFp16Dim256x256;

// Writes the plan: header, units and what they need.
cudaError_t launch_plan(const KernelParams& params, cudaStream_t stream);

}  // namespace onepass::portable
