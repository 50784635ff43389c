// A row's elements stay in registers between the sum and the scaling: one pass over memory. Short rows (the heads of QK
// norm) go several to a warp, longer ones one to a thread block with a thread for each 8 elements (16 beyond 8,192).
#include "kernels/cuda/rms_norm.h"

#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rms_norm.cuh"

namespace onepass {
namespace {

constexpr int kPiece = 8;
constexpr int kShortRowThreads = 128;
constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxBlocks = 0x7fffffff;

// The sum over a thread block of whole warps.
__device__ inline float sum_over_block(float sum) {
  __shared__ float of_warp[kMaxThreads / 32];
  sum = sum_over_lanes<32>(sum);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  return sum_over_lanes<32>(threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : 0.0f);
}

__device__ inline int64_t x_row(const CudaRmsNormParams& p, int64_t row) {
  return row / p.rows * p.x_group_stride + row % p.rows * p.x_row_stride;
}
__device__ inline int64_t out_row(const CudaRmsNormParams& p, int64_t row) {
  return row / p.rows * p.out_group_stride + row % p.rows * p.out_row_stride;
}

// cols <= kLanes * kPiece.
template <typename X, typename Out, int kLanes>
__global__ void __launch_bounds__(kShortRowThreads) rms_norm_short_rows(const __grid_constant__ CudaRmsNormParams p) {
  let_next_kernel_start();
  const int64_t row = int64_t{blockIdx.x} * (kShortRowThreads / kLanes) + threadIdx.x / kLanes;
  const int column = threadIdx.x % kLanes * kPiece;
  const bool has_piece = row < p.num_groups * p.rows && column < p.cols;
  float weight[kPiece] = {}, x[kPiece] = {};
  if (has_piece) load_piece<float>(p.weight, column, weight);
  wait_for_earlier_kernels();
  if (has_piece) load_piece<X>(p.x, x_row(p, row) + column, x);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPiece; ++i) sum += x[i] * x[i];
  const float factor = rms_norm_factor(sum_over_lanes<kLanes>(sum), p.cols, p.eps);
#pragma unroll
  for (int i = 0; i < kPiece; ++i) x[i] *= factor * weight[i];
  if (has_piece) store_piece<Out>(p.out, out_row(p, row) + column, x);
}

// cols <= kPieces * kPiece * blockDim.x.
template <typename X, typename Out, int kPieces>
__global__ void __launch_bounds__(kMaxThreads) rms_norm_rows(const __grid_constant__ CudaRmsNormParams p) {
  let_next_kernel_start();
  const int64_t x_at = x_row(p, blockIdx.x), out_at = out_row(p, blockIdx.x);
  float x[kPieces][kPiece] = {};
  wait_for_earlier_kernels();
  float sum = 0.0f;
#pragma unroll
  for (int n = 0; n < kPieces; ++n) {
    const int64_t column = (int64_t{n} * blockDim.x + threadIdx.x) * kPiece;
    if (column < p.cols) load_piece<X>(p.x, x_at + column, x[n]);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) sum += x[n][i] * x[n][i];
  }
  const float factor = rms_norm_factor(sum_over_block(sum), p.cols, p.eps);
#pragma unroll
  for (int n = 0; n < kPieces; ++n) {
    const int64_t column = (int64_t{n} * blockDim.x + threadIdx.x) * kPiece;
    if (column >= p.cols) continue;
    float weight[kPiece];
    load_piece<float>(p.weight, column, weight);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) x[n][i] *= factor * weight[i];
    store_piece<Out>(p.out, out_at + column, x[n]);
  }
}

// Any number of columns, any alignment: element by element, x read twice.
template <typename X, typename Out>
__global__ void __launch_bounds__(kMaxThreads) rms_norm_any_rows(const __grid_constant__ CudaRmsNormParams p) {
  let_next_kernel_start();
  const X* x = static_cast<const X*>(p.x) + x_row(p, blockIdx.x);
  Out* out = static_cast<Out*>(p.out) + out_row(p, blockIdx.x);
  wait_for_earlier_kernels();
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < p.cols; i += blockDim.x) sum += widen(x[i]) * widen(x[i]);
  const float factor = rms_norm_factor(sum_over_block(sum), p.cols, p.eps);
  for (int64_t i = threadIdx.x; i < p.cols; i += blockDim.x) out[i] = narrow<Out>(widen(x[i]) * factor * p.weight[i]);
}

template <typename X, typename Out, int kLanes>
Status launch_short_rows(const CudaRmsNormParams& p, CUstream_st* stream) {
  constexpr int kRows = kShortRowThreads / kLanes;
  const auto blocks = static_cast<unsigned>((p.num_groups * p.rows + kRows - 1) / kRows);
  return launch_early("rms_norm", rms_norm_short_rows<X, Out, kLanes>,
                      {.grid = dim3(blocks), .threads = kShortRowThreads}, stream, p);
}

template <typename X, typename Out>
Status launch(const CudaRmsNormParams& p, CUstream_st* stream) {
  const dim3 rows(static_cast<unsigned>(p.num_groups * p.rows));
  const bool by_pieces = goes_by_pieces(p.x, kPiece, p.cols, p.x_row_stride, p.x_group_stride) &&
                         goes_by_pieces(p.out, kPiece, p.cols, p.out_row_stride, p.out_group_stride) &&
                         goes_by_pieces(p.weight, kPiece, p.cols, 0);
  const int64_t threads = (p.cols + kPiece - 1) / kPiece;
  const auto whole_warps = [](int64_t n) { return static_cast<int>((n + 31) / 32 * 32); };
  if (!by_pieces || threads > 2 * kMaxThreads) {
    const int count = std::min(whole_warps(p.cols), kMaxThreads);
    return launch_early("rms_norm", rms_norm_any_rows<X, Out>, {.grid = rows, .threads = count}, stream, p);
  }
  if (threads <= 8) return launch_short_rows<X, Out, 8>(p, stream);
  if (threads <= 16) return launch_short_rows<X, Out, 16>(p, stream);
  if (threads <= 32) return launch_short_rows<X, Out, 32>(p, stream);
  if (threads <= kMaxThreads) {
    return launch_early("rms_norm", rms_norm_rows<X, Out, 1>, {.grid = rows, .threads = whole_warps(threads)}, stream,
                        p);
  }
  return launch_early("rms_norm", rms_norm_rows<X, Out, 2>, {.grid = rows, .threads = whole_warps((threads + 1) / 2)},
                      stream, p);
}

Status check(const CudaRmsNormParams& p) {
  if (!is_float_dtype(p.x_dtype) || !is_float_dtype(p.out_dtype)) {
    return invalid_argument("rms_norm: x_dtype and out_dtype: expected float32, float16 or bfloat16, found ",
                            to_string(p.x_dtype), " and ", to_string(p.out_dtype));
  }
  if (p.cols <= 0) return invalid_argument("rms_norm: cols: expected at least 1, found ", p.cols);
  if (p.rows < 0 || p.num_groups < 0 || p.rows > kMaxBlocks || p.num_groups > kMaxBlocks ||
      p.rows * p.num_groups > kMaxBlocks) {
    return invalid_argument("rms_norm: num_groups * rows: expected 0 to ", kMaxBlocks, ", found ", p.num_groups, " * ",
                            p.rows);
  }
  if (p.x == p.out && p.x_dtype != p.out_dtype) {
    return invalid_argument("rms_norm: out: expected another address than x's for another dtype, found the same");
  }
  if (p.rows * p.num_groups > 0 && (p.x == nullptr || p.weight == nullptr || p.out == nullptr)) {
    return invalid_argument("rms_norm: x, weight and out: expected addresses, found a null one");
  }
  return ok_status();
}

}  // namespace

Status run_rms_norm_cuda(const CudaRmsNormParams& p, CUstream_st* stream) {
  ONEPASS_RETURN_IF_ERROR(check(p));
  if (p.num_groups * p.rows == 0) return ok_status();
  return with_element_type(p.x_dtype, [&](auto x) {
    return with_element_type(p.out_dtype, [&](auto out) {
      return launch<typename decltype(x)::type, typename decltype(out)::type>(p, stream);
    });
  });
}

}  // namespace onepass
