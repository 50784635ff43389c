// A build without CUDA has no kernels.
#include "attention/cuda/flash_attention_cuda.h"

namespace onepass {

std::span<const CudaAttentionKernel* const> cuda_attention_kernels() { return {}; }

}  // namespace onepass
