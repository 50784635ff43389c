// query_cuda() of a binary built without nvcc.
#include "tensor/cuda_info.h"

namespace onepass {

CudaInfo query_cuda() {
  CudaInfo info;
  info.problem = "this binary was built without CUDA";
  return info;
}

}  // namespace onepass
