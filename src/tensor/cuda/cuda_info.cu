#include "tensor/cuda_info.h"

#include <cuda_runtime.h>

#include <thread>

namespace onepass {
namespace {

// Asked for its attributes only: the runtime refuses when the binary holds no code for the GPU.
__global__ void probe_kernel() {}

// On a thread of its own, as every thread has a current GPU: to make the caller's current again would put a context,
// with hundreds of megabytes of memory, on a GPU that it may never use (the first one, if it has not chosen yet).
bool is_usable(int index) {
  bool usable = false;
  std::thread([&] {
    cudaFuncAttributes attributes;
    usable = cudaSetDevice(index) == cudaSuccess && cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess;
  }).join();
  return usable;
}

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
  gpu.usable = is_usable(index);
  return gpu;
}

}  // namespace

CudaInfo query_cuda() {
  CudaInfo info;
  info.compiled = true;
  cudaRuntimeGetVersion(&info.runtime_version);
  cudaDriverGetVersion(&info.driver_version);
  const StatusOr<int> count = count_gpus();
  if (!count.ok()) {
    info.problem = std::string(count.status().message());
    return info;
  }
  for (int index = 0; index < *count; ++index) info.gpus.push_back(describe_gpu(index));
  cudaGetLastError();
  return info;
}

StatusOr<int> count_gpus() {
  int driver_version = 0, count = 0;
  cudaDriverGetVersion(&driver_version);
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (driver_version != 0 && error == cudaSuccess && count > 0) return count;
  cudaGetLastError();  // the error is told; later calls must not find it
  if (driver_version == 0) return not_found("no NVIDIA driver");
  if (error == cudaErrorInsufficientDriver) {
    int runtime_version = 0;
    cudaRuntimeGetVersion(&runtime_version);
    return not_found("NVIDIA driver: expected one for CUDA ", runtime_version / 1000, ".", runtime_version % 1000 / 10,
                     ", found one for CUDA ", driver_version / 1000, ".", driver_version % 1000 / 10);
  }
  return not_found(error != cudaSuccess ? cudaGetErrorString(error) : "no NVIDIA GPU");
}

StatusOr<GpuInfo> query_gpu(int index) {
  ONEPASS_ASSIGN_OR_RETURN(const int count, count_gpus());
  if (index < 0 || index >= count) {
    return not_found("GPU ", index, ": expected 0 to ", count - 1, ", the GPUs of this machine");
  }
  GpuInfo gpu = describe_gpu(index);
  cudaGetLastError();
  return gpu;
}

}  // namespace onepass
