// Random problems for GPU kernels: what differs from random_attention_spec() is what such kernels' tiles are sensitive
// to.
#pragma once

#include <random>

#include "attention/cuda/flash_attention_cuda.h"
#include "attention/testing/attention_problem.h"

namespace onepass {

// Batches of 1 to 6 requests that decode (1 to 16 rows), extend, prefill or do a bit of all; lengths of 0, 1, on and
// beside the edges of tiles, and now and then of thousands of keys; 1 to 16 query heads a key-value head; head
// dimensions of 64 to 256 and 192/128; pages of 1 to 256 and contiguous rows; fp16 and bf16, seldom fp32 or a mixture.
// Half of them have no other option than causal. Small enough for the float64 reference: some 10 ms on 16 processors.
AttentionSpec random_gpu_spec(std::mt19937_64& rng);

// Whether a kernel takes the problem; asks with addresses that are not null but of no memory.
Status kernel_supports(const CudaAttentionKernel& kernel, const AttentionSpec& spec, const GpuInfo& gpu);

}  // namespace onepass
