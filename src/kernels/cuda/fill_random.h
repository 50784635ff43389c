// Dummy weights made where they are needed: the numbers that models/weight_source.h's random weights have, bit for bit.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "tensor/dtype.h"

struct CUstream_st;

namespace onepass {

// data[i] = offset + scale * u(seed, i), rounded to dtype, with u uniform in [-1/2, 1/2). Device memory.
struct CudaFillRandomParams {
  void* data = nullptr;
  DType dtype = DType::kBF16;  // float32, float16 or bfloat16
  int64_t elements = 0;
  float offset = 0.0f;
  float scale = 1.0f;
  uint64_t seed = 0;
};

// Queues the work. The error names the field that is wrong, or is a CUDA error.
Status run_fill_random_cuda(const CudaFillRandomParams& params, CUstream_st* stream);

}  // namespace onepass
