#include "attention/cuda/hopper_prefill_launch.cuh"

namespace onepass::hopper {

const PrefillKernel kPrefillBf16[] = {
    make_prefill_kernel<PrefillConfig<__nv_bfloat16, 128, 128, 128, 2, 2>>(),
};

std::span<const PrefillKernel> prefill_kernels() { return kPrefillBf16; }

}  // namespace onepass::hopper
