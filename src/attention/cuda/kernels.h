// The kernels of this folder, one constant each; flash_attention_cuda.cc orders them.
#pragma once

#include "attention/cuda/flash_attention_cuda.h"

namespace onepass {

// sm_90a: up to 32 packed rows (query tokens times the query heads of one KV head) over long keys, bound by memory.
extern const CudaAttentionKernel kHopperDecode;

// mma.sync and cp.async, sm_80 and later: every option of AttentionParams. The slow twin of the others.
extern const CudaAttentionKernel kPortableAttention;

// wgmma and TMA, sm_90a: prefill and extend, bf16 and fp16.
extern const CudaAttentionKernel kHopperPrefill;

// Float32 arithmetic, a block for each query row and head: every option, any dtype, head dimensions up to 512. The
// plain twin of the others, not fast.
extern const CudaAttentionKernel kNaiveAttention;

}  // namespace onepass
