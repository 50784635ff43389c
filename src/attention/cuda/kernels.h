// The kernels of this folder, one constant each; flash_attention_cuda.cc orders them.
#pragma once

#include "attention/cuda/flash_attention_cuda.h"

namespace onepass {

// mma.sync and cp.async, sm_80 and later: every option of AttentionParams. The slow twin of the others.
extern const CudaAttentionKernel kPortableAttention;

}  // namespace onepass
