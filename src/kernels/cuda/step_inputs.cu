#include "kernels/cuda/step_inputs.h"

#include "kernels/cuda/launch.cuh"

namespace onepass {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) unpack_rows_kernel(const __grid_constant__ CudaUnpackRowsParams p) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const int row = blockIdx.x;
  const int begin = p.begin[row], count = p.begin[row + 1] - begin;
  for (int i = threadIdx.x; i < count; i += kThreads) p.table[row * p.table_stride + i] = p.packed[begin + i];
}

__global__ void __launch_bounds__(kThreads) resolve_tokens_kernel(const __grid_constant__ CudaResolveTokensParams p) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i < p.count && p.ids[i] < 0) p.ids[i] = p.sampled[~p.ids[i]];
}

}  // namespace

Status run_unpack_rows_cuda(const CudaUnpackRowsParams& p, CUstream_st* stream) {
  if (p.num_rows == 0) return ok_status();
  return launch_early("unpack_rows", unpack_rows_kernel,
                      {.grid = dim3(static_cast<unsigned>(p.num_rows)), .threads = kThreads}, stream, p);
}

Status run_resolve_tokens_cuda(const CudaResolveTokensParams& p, CUstream_st* stream) {
  if (p.count == 0) return ok_status();
  return launch_early("resolve_tokens", resolve_tokens_kernel,
                      {.grid = dim3(static_cast<unsigned>((p.count + kThreads - 1) / kThreads)), .threads = kThreads},
                      stream, p);
}

}  // namespace onepass
