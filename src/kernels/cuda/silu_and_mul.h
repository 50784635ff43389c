// The gated activation of the feed-forward layer on a GPU: the twin of kernels/activation.h.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "tensor/dtype.h"

struct CUstream_st;

namespace onepass {

// out[r][c] = silu(gate_up[r][c]) * gate_up[r][cols + c], computed in float32. Device memory, rows 16-byte aligned.
struct CudaSiluAndMulParams {
  DType dtype = DType::kBF16;     // of both: float32, float16 or bfloat16
  const void* gate_up = nullptr;  // [rows, 2 * cols]
  int64_t gate_up_row_stride = 0;
  void* out = nullptr;  // [rows, cols]
  int64_t out_row_stride = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};

// Queues the work. The error names the field that is wrong, or is a CUDA error.
Status run_silu_and_mul_cuda(const CudaSiluAndMulParams& params, CUstream_st* stream);

}  // namespace onepass
