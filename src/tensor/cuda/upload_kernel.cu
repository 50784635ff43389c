#include "tensor/cuda/upload_kernel.h"

#include <cuda_runtime.h>

#include "base/check.h"
#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

constexpr int kThreads = 128;

// Each thread has one request of 16 bytes under way: what counts is how many there are at once.
__global__ void __launch_bounds__(kThreads) upload_kernel(uint4* to, const uint4* from, size_t count) {
#if __CUDA_ARCH__ >= 900
  // The next kernel's blocks may begin as far as their wait.
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  const size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) to[i] = from[i];
}

unsigned blocks_for(size_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

}  // namespace

Status upload_by_kernel(void* to, const void* from, size_t bytes, CUstream_st* stream) {
  if (bytes == 0) return ok_status();
  const size_t count = bytes / sizeof(uint4);
  upload_kernel<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<uint4*>(to), static_cast<const uint4*>(from),
                                                            count);
  return cuda_status(cudaGetLastError(), "upload");
}

Status set_first_upload(const CudaGraph& graph, void* to, const void* from, size_t bytes) {
  ONEPASS_CHECK(graph.first() != nullptr);
  ONEPASS_CHECK_GT(bytes, 0u);
  size_t count = bytes / sizeof(uint4);
  void* arguments[] = {&to, &from, &count};
  cudaKernelNodeParams params = {};
  params.func = reinterpret_cast<void*>(upload_kernel);
  params.gridDim = dim3(blocks_for(count));
  params.blockDim = dim3(kThreads);
  params.kernelParams = arguments;
  return cuda_status(cudaGraphExecKernelNodeSetParams(graph.get(), graph.first(), &params),
                     "cudaGraphExecKernelNodeSetParams");
}

}  // namespace onepass
