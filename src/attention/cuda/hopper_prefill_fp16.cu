#include "attention/cuda/hopper_prefill_launch.cuh"

namespace onepass::hopper {

std::span<const PrefillKernel> prefill_kernels_fp16() {
  static constexpr PrefillKernel kKernels[] = {
      make_prefill_kernel<PrefillConfig<__half, 128, 128, 128, 3, 2, 2>>(),
      make_prefill_kernel<PrefillConfig<__half, 64, 64, 128, 3, 3, 2, 3>>(),
      make_prefill_kernel<PrefillConfig<__half, 192, 128, 128, 2, 2, 1>>(),
      make_prefill_kernel<PrefillConfig<__half, 256, 256, 64, 2, 2, 1>>(),
  };
  return kKernels;
}

}  // namespace onepass::hopper
