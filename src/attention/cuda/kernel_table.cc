// One line for each kernel, the most special first.
#include <array>

#include "attention/cuda/kernels.h"

namespace onepass {
namespace {

constexpr std::array<const CudaAttentionKernel*, 4> kKernels = {
    &kHopperDecode,
    &kHopperPrefill,
    &kPortableAttention,
    &kNaiveAttention,
};

}  // namespace

std::span<const CudaAttentionKernel* const> cuda_attention_kernels() { return kKernels; }

}  // namespace onepass
