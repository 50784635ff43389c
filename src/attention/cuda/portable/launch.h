// The portable kernels of one dtype and pair of head dimensions, as the host sees them.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/cuda/portable/kernel_params.h"

namespace onepass::portable {

using LaunchKernel = cudaError_t (*)(const KernelParams& params, int blocks, int shared_bytes, cudaStream_t stream);

struct Kernel {
  int rows = 0;  // packed rows of a tile
  int shared_bytes = 0;
  LaunchKernel launch = nullptr;
};

struct KernelSet {
  Kernel decode;
  int fold_floats = 0;  // of one thread block of decode, in KernelParams::fold_state
  Kernel extend;        // prefill with tiles of half as many rows, for few of them; or prefill itself
  Kernel prefill;
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
