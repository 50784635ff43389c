// What a step's inputs need on a GPU before its layers run.
#pragma once

#include <cstdint>

#include "base/status.h"

struct CUstream_st;

namespace onepass {

// Rows of a page table, sent side by side, to their places: table[r][i] = packed[begin[r] + i] for i below
// begin[r + 1] - begin[r]; what a row holds after that stays. Device memory.
struct CudaUnpackRowsParams {
  const int32_t* packed = nullptr;  // [begin[num_rows]]
  const int32_t* begin = nullptr;   // [num_rows + 1]
  int num_rows = 0;
  int32_t* table = nullptr;  // [num_rows, table_stride]; no row is longer
  int64_t table_stride = 0;
};
Status run_unpack_rows_cuda(const CudaUnpackRowsParams& params, CUstream_st* stream);

// Token ids that the host does not know yet: ids[i] = sampled[~ids[i]] where ids[i] is negative. Device memory.
struct CudaResolveTokensParams {
  int32_t* ids = nullptr;            // [count], changed in place
  const int32_t* sampled = nullptr;  // by slot: what its request has sampled last
  int count = 0;
};
Status run_resolve_tokens_cuda(const CudaResolveTokensParams& params, CUstream_st* stream);

}  // namespace onepass
