// Programmatic dependent launch: a kernel's blocks begin while the kernel before it in the stream still runs, and wait
// where they first touch what that one writes. What the launch of a kernel costs (2 us of a decoder's 5 to 40 for a
// layer's operator) is hidden, and weights, which no kernel writes, are on their way before the wait.
//
// Every thread of a kernel that is launched so calls wait_for_earlier_kernels() before it ends.
#pragma once

#include <cuda_runtime.h>

#include <string_view>

#include "base/status.h"
#include "tensor/cuda/cuda_status.h"
#include "tensor/cuda/ptx.cuh"

namespace onepass {

struct LaunchShape {
  dim3 grid;
  int threads = 0;          // of a block
  size_t shared_bytes = 0;  // dynamic
  int cluster = 1;          // thread blocks of a cluster, along x
};

// How many clusters of the kernel fit on the GPU at a time: they do not fill one whose groups of SMs they do not
// divide.
template <typename... Params>
StatusOr<int> clusters_at_once(std::string_view what, void (*kernel)(Params...), const LaunchShape& shape) {
  cudaLaunchAttribute size{};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim.x = shape.cluster, size.val.clusterDim.y = 1, size.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.cluster);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = &size;
  config.numAttrs = 1;
  int clusters = 0;
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), what));
  return clusters;
}

// Queues kernel(args...), early where the GPU can.
template <typename... Params, typename... Args>
Status launch_early(std::string_view what, void (*kernel)(Params...), const LaunchShape& shape, CUstream_st* stream,
                    const Args&... args) {
  int device = 0, major = 0;
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaGetDevice(&device), what));
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), what));
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (major >= 9) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = shape.cluster;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  return cuda_status(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), what);
}

}  // namespace onepass
