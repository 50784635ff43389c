// The queries of a binary built without nvcc.
#include "tensor/cuda_info.h"

namespace onepass {

CudaInfo query_cuda() {
  CudaInfo info;
  info.problem = "this binary was built without CUDA";
  return info;
}

StatusOr<int> count_gpus() { return not_found("this binary was built without CUDA"); }

StatusOr<GpuInfo> query_gpu(int) { return not_found("this binary was built without CUDA"); }

}  // namespace onepass
