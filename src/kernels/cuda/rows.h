// Rows picked by an index on a GPU: token ids to vectors (the twin of kernels/embedding.h), and the rows of a step
// whose logits are wanted.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "tensor/dtype.h"

struct CUstream_st;

namespace onepass {

// out[i] = table[index[i]], converted to out_dtype. An index outside 0 .. table_rows - 1 gives a row of zeros: what a
// device holds cannot be refused. Device memory, rows 16-byte aligned; out and table do not overlap.
struct CudaGatherRowsParams {
  const void* table = nullptr;  // [table_rows, cols]
  DType table_dtype = DType::kBF16;
  int64_t table_rows = 0;
  int64_t table_row_stride = 0;
  const int32_t* index = nullptr;  // [rows]
  void* out = nullptr;             // [rows, cols]
  DType out_dtype = DType::kF32;
  int64_t out_row_stride = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};

// Queues the work. The error names the field that is wrong, or is a CUDA error.
Status run_gather_rows_cuda(const CudaGatherRowsParams& params, CUstream_st* stream);

}  // namespace onepass
