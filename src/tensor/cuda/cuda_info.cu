#include "tensor/cuda_info.h"

#include <cuda_runtime.h>

namespace onepass {
namespace {

// Asked for its attributes only: the runtime refuses when the binary holds no code for the GPU.
__global__ void probe_kernel() {}

GpuInfo query_gpu(int index) {
  GpuInfo gpu;
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) return gpu;
  gpu.name = properties.name;
  gpu.compute_capability = 10 * properties.major + properties.minor;
  gpu.multiprocessors = properties.multiProcessorCount;
  gpu.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  gpu.l2_cache_bytes = properties.l2CacheSize;
  gpu.shared_memory_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  cudaFuncAttributes attributes;
  gpu.usable = cudaSetDevice(index) == cudaSuccess && cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess;
  return gpu;
}

}  // namespace

CudaInfo query_cuda() {
  CudaInfo info;
  info.compiled = true;
  cudaRuntimeGetVersion(&info.runtime_version);
  cudaDriverGetVersion(&info.driver_version);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (info.driver_version == 0) {
    info.problem = "no NVIDIA driver";
  } else if (error != cudaSuccess) {
    info.problem = cudaGetErrorString(error);
  } else if (count == 0) {
    info.problem = "no NVIDIA GPU";
  }
  if (!info.problem.empty()) {
    cudaGetLastError();  // the error is told; later calls must not find it
    return info;
  }
  int current = 0;
  cudaGetDevice(&current);
  for (int index = 0; index < count; ++index) info.gpus.push_back(query_gpu(index));
  cudaSetDevice(current);
  cudaGetLastError();
  return info;
}

}  // namespace onepass
