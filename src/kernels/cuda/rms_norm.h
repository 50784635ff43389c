// Root mean square normalisation on a GPU: the twin of kernels/norm.h.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "tensor/dtype.h"

struct CUstream_st;

namespace onepass {

// out[g][r][c] = x[g][r][c] / sqrt(mean(x[g][r]^2) + eps) * weight[c], computed in float32. Row r of group g begins at
// element g * group_stride + r * row_stride (QK norm: groups are tokens, rows their heads). out may be x where the
// dtypes are the same. Rows are 16-byte aligned. All pointers are device memory.
struct CudaRmsNormParams {
  const void* x = nullptr;
  DType x_dtype = DType::kF32;  // float32, float16 or bfloat16
  int64_t x_group_stride = 0;
  int64_t x_row_stride = 0;
  const float* weight = nullptr;  // [cols]
  float eps = 0.0f;
  void* out = nullptr;
  DType out_dtype = DType::kBF16;  // float32, float16 or bfloat16
  int64_t out_group_stride = 0;
  int64_t out_row_stride = 0;
  int64_t num_groups = 1;
  int64_t rows = 0;  // of each group
  int64_t cols = 0;
};

// Queues the work. The error names the field that is wrong, or is a CUDA error.
Status run_rms_norm_cuda(const CudaRmsNormParams& params, CUstream_st* stream);

}  // namespace onepass
