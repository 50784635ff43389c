#include "attention/cuda/hopper_prefill_launch.cuh"

namespace onepass::hopper {

std::span<const PrefillKernel> prefill_kernels_bf16() {
  static constexpr PrefillKernel kKernels[] = {
      // A second tile's queries are worth more than a third block of keys where tiles are short.
      make_prefill_kernel<PrefillConfig<__nv_bfloat16, 128, 128, 128, 2, 2, 2, 2>>(/*longest=*/1024),
      // Where all tiles of a head are as long, they read the same keys at the same time anyway, and pairs gain nothing.
      make_prefill_kernel<Paired<PrefillConfig<__nv_bfloat16, 128, 128, 128, 3, 2, 1, 2>>>(/*longest=*/0,
                                                                                           /*shortest=*/2048),
      make_prefill_kernel<PrefillConfig<__nv_bfloat16, 128, 128, 128, 3, 2, 1, 2>>(),
      make_prefill_kernel<PrefillConfig<__nv_bfloat16, 64, 64, 128, 3, 3, 2, 1, 3>>(),
      make_prefill_kernel<PrefillConfig<__nv_bfloat16, 192, 128, 128, 2, 2, 1, 1>>(),
      make_prefill_kernel<PrefillConfig<__nv_bfloat16, 256, 256, 64, 2, 2, 1, 2>>(),
      make_prefill_kernel<Gathering<PrefillConfig<__nv_bfloat16, 128, 128, 128, 3, 2, 1, 2>>>(),
      make_prefill_kernel<Gathering<PrefillConfig<__nv_bfloat16, 64, 64, 128, 3, 3, 2, 1>>>(),
      make_prefill_kernel<Gathering<PrefillConfig<__nv_bfloat16, 192, 128, 128, 2, 2, 1, 1>>>(),
      make_prefill_kernel<Gathering<PrefillConfig<__nv_bfloat16, 256, 256, 64, 2, 2, 1, 2>>>(),
  };
  return kKernels;
}

}  // namespace onepass::hopper
