#include <cuda_runtime.h>

#include "kernels/cuda/read_memory.h"
#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 8;  // of a thread, all under way at once

__global__ void __launch_bounds__(kThreads) read_memory_kernel(const uint4* data, size_t count) {
  const size_t begin = size_t{blockIdx.x} * kThreads * kLoads + threadIdx.x;
  uint4 pieces[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const size_t at = begin + i * kThreads;
    pieces[i] = at < count ? data[at] : uint4{};
  }
  unsigned bits = 0;
#pragma unroll
  for (const uint4& piece : pieces) bits |= piece.x | piece.y | piece.z | piece.w;
  // Never so, which the compiler does not know: it would leave the loads out.
  if (bits != 0) __trap();
}

}  // namespace

Status run_read_memory_cuda(const void* data, size_t bytes, CUstream_st* stream) {
  const size_t count = bytes / sizeof(uint4), of_block = size_t{kThreads} * kLoads;
  const auto blocks = static_cast<unsigned>((count + of_block - 1) / of_block);
  if (blocks == 0) return ok_status();
  read_memory_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const uint4*>(data), count);
  return cuda_status(cudaGetLastError(), "read memory");
}

}  // namespace onepass
