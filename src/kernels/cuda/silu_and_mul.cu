// A thread for each 8 columns of a row; of one row there are blocks enough to spread over the GPU.
#include "kernels/cuda/silu_and_mul.h"

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/silu.cuh"

namespace onepass {
namespace {

constexpr int kPiece = 8;
constexpr int kThreads = 128;

// Blocks: x goes over pieces of a row, y and z over rows.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) silu_and_mul_kernel(const __grid_constant__ CudaSiluAndMulParams p) {
  let_next_kernel_start();
  const int64_t column = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount;
  wait_for_earlier_kernels();
  if (column >= p.cols) return;
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    float gate[kCount], up[kCount];
    load_piece<T>(p.gate_up, row * p.gate_up_row_stride + column, gate);
    load_piece<T>(p.gate_up, row * p.gate_up_row_stride + p.cols + column, up);
#pragma unroll
    for (int i = 0; i < kCount; ++i) up[i] = silu_and_mul(gate[i], up[i]);
    store_piece<T>(p.out, row * p.out_row_stride + column, up);
  }
}

template <typename T, int kCount>
Status launch(const CudaSiluAndMulParams& p, CUstream_st* stream) {
  constexpr int64_t kColumns = kThreads * kCount;
  const dim3 grid(static_cast<unsigned>((p.cols + kColumns - 1) / kColumns),
                  static_cast<unsigned>(p.rows < 65535 ? p.rows : 65535));
  return launch_early("silu_and_mul", silu_and_mul_kernel<T, kCount>, {.grid = grid, .threads = kThreads}, stream, p);
}

Status check(const CudaSiluAndMulParams& p) {
  if (!is_float_dtype(p.dtype)) {
    return invalid_argument("silu_and_mul: dtype: expected float32, float16 or bfloat16, found ", to_string(p.dtype));
  }
  if (p.cols <= 0) return invalid_argument("silu_and_mul: cols: expected at least 1, found ", p.cols);
  if (p.rows < 0) return invalid_argument("silu_and_mul: rows: expected at least 0, found ", p.rows);
  if (p.rows > 0 && (p.gate_up == nullptr || p.out == nullptr)) {
    return invalid_argument("silu_and_mul: gate_up and out: expected addresses, found a null one");
  }
  return ok_status();
}

}  // namespace

Status run_silu_and_mul_cuda(const CudaSiluAndMulParams& p, CUstream_st* stream) {
  ONEPASS_RETURN_IF_ERROR(check(p));
  if (p.rows == 0) return ok_status();
  const bool by_pieces = goes_by_pieces(p.gate_up, kPiece, p.cols, p.gate_up_row_stride) &&
                         goes_by_pieces(p.out, kPiece, p.cols, p.out_row_stride);
  return with_element_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return by_pieces ? launch<T, kPiece>(p, stream) : launch<T, 1>(p, stream);
  });
}

}  // namespace onepass
