#include "kernels/cuda/pause.h"

#include "kernels/cuda/launch.cuh"

namespace onepass {
namespace {

__global__ void pause_kernel(const int64_t cycles) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const int64_t begin = clock64();
  while (clock64() - begin < cycles) {
  }
}

}  // namespace

Status run_pause_cuda(int64_t cycles, CUstream_st* stream) {
  return launch_early("pause", pause_kernel, {.grid = dim3(1), .threads = 32}, stream, cycles);
}

}  // namespace onepass
