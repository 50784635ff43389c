#include "tensor/cuda/upload_kernel.h"

#include <cuda_runtime.h>

#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

constexpr int kThreads = 128;

// Each thread has one request of 16 bytes under way: what counts is how many there are at once.
__global__ void __launch_bounds__(kThreads) upload_kernel(uint4* to, const uint4* from, size_t count) {
  const size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) to[i] = from[i];
}

}  // namespace

Status upload_by_kernel(void* to, const void* from, size_t bytes, CUstream_st* stream) {
  if (bytes == 0) return ok_status();
  const size_t count = bytes / sizeof(uint4);
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  upload_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<uint4*>(to), static_cast<const uint4*>(from), count);
  return cuda_status(cudaGetLastError(), "upload");
}

}  // namespace onepass
