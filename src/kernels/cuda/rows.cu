// A thread for each 8 columns of a row. The index is read by every thread of a row: it comes from the L1 cache.
#include "kernels/cuda/rows.h"

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"

namespace onepass {
namespace {

constexpr int kPiece = 8;
constexpr int kThreads = 128;

template <typename Table, typename Out, int kCount>
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(const __grid_constant__ CudaGatherRowsParams p) {
  let_next_kernel_start();
  const int64_t column = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount;
  wait_for_earlier_kernels();
  if (column >= p.cols) return;
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const int64_t from = p.index[row];
    float values[kCount] = {};
    if (from >= 0 && from < p.table_rows) load_piece<Table>(p.table, from * p.table_row_stride + column, values);
    store_piece<Out>(p.out, row * p.out_row_stride + column, values);
  }
}

template <typename Table, typename Out, int kCount>
Status launch(const CudaGatherRowsParams& p, CUstream_st* stream) {
  constexpr int64_t kColumns = kThreads * kCount;
  const dim3 grid(static_cast<unsigned>((p.cols + kColumns - 1) / kColumns),
                  static_cast<unsigned>(p.rows < 65535 ? p.rows : 65535));
  return launch_early("gather_rows", gather_rows_kernel<Table, Out, kCount>, {.grid = grid, .threads = kThreads},
                      stream, p);
}

Status check(const CudaGatherRowsParams& p) {
  if (!is_float_dtype(p.table_dtype) || !is_float_dtype(p.out_dtype)) {
    return invalid_argument("gather_rows: table_dtype and out_dtype: expected float32, float16 or bfloat16, found ",
                            to_string(p.table_dtype), " and ", to_string(p.out_dtype));
  }
  if (p.cols <= 0) return invalid_argument("gather_rows: cols: expected at least 1, found ", p.cols);
  if (p.rows < 0 || p.table_rows < 0) {
    return invalid_argument("gather_rows: rows and table_rows: expected at least 0, found ", p.rows, " and ",
                            p.table_rows);
  }
  if (p.rows > 0 && (p.table == nullptr || p.index == nullptr || p.out == nullptr)) {
    return invalid_argument("gather_rows: table, index and out: expected addresses, found a null one");
  }
  return ok_status();
}

}  // namespace

Status run_gather_rows_cuda(const CudaGatherRowsParams& p, CUstream_st* stream) {
  ONEPASS_RETURN_IF_ERROR(check(p));
  if (p.rows == 0) return ok_status();
  const bool by_pieces = goes_by_pieces(p.table, kPiece, p.cols, p.table_row_stride) &&
                         goes_by_pieces(p.out, kPiece, p.cols, p.out_row_stride);
  return with_element_type(p.table_dtype, [&](auto table) {
    return with_element_type(p.out_dtype, [&](auto out) {
      using Table = typename decltype(table)::type;
      using Out = typename decltype(out)::type;
      return by_pieces ? launch<Table, Out, kPiece>(p, stream) : launch<Table, Out, 1>(p, stream);
    });
  });
}

}  // namespace onepass
