#include "tensor/cuda_info.h"

#include <cuda_runtime.h>

namespace onepass {
namespace {

// Asked for its attributes only: the runtime refuses when the binary holds no code for the GPU.
__global__ void probe_kernel() {}

GpuInfo describe_gpu(int index) {
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

// Sets `count`; returns why there are none.
std::string count_gpus(int& count) {
  int driver_version = 0;
  cudaDriverGetVersion(&driver_version);
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (driver_version != 0 && error == cudaSuccess && count > 0) return "";
  cudaGetLastError();  // the error is told; later calls must not find it
  count = 0;
  if (driver_version == 0) return "no NVIDIA driver";
  return error != cudaSuccess ? cudaGetErrorString(error) : "no NVIDIA GPU";
}

}  // namespace

CudaInfo query_cuda() {
  CudaInfo info;
  info.compiled = true;
  cudaRuntimeGetVersion(&info.runtime_version);
  cudaDriverGetVersion(&info.driver_version);
  int count = 0;
  info.problem = count_gpus(count);
  if (!info.problem.empty()) return info;
  int current = 0;
  cudaGetDevice(&current);
  for (int index = 0; index < count; ++index) info.gpus.push_back(describe_gpu(index));
  cudaSetDevice(current);
  cudaGetLastError();
  return info;
}

StatusOr<GpuInfo> query_gpu(int index) {
  int count = 0;
  if (const std::string problem = count_gpus(count); !problem.empty()) return not_found(problem);
  if (index < 0 || index >= count) {
    return not_found("GPU ", index, ": expected 0 to ", count - 1, ", the GPUs of this machine");
  }
  int current = 0;
  cudaGetDevice(&current);
  GpuInfo gpu = describe_gpu(index);
  cudaSetDevice(current);
  cudaGetLastError();
  return gpu;
}

}  // namespace onepass
