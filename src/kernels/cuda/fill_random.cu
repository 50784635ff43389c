#include "kernels/cuda/fill_random.h"

#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

constexpr int kThreads = 256;

// As on the CPU, product and sum rounded each, which a fused multiply-add would not.
template <typename T>
__global__ void __launch_bounds__(kThreads) fill_random_kernel(const __grid_constant__ CudaFillRandomParams p) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < p.elements; i += step) {
    uint64_t z = p.seed + (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    const float uniform = static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-24f - 0.5f;
    static_cast<T*>(p.data)[i] = narrow<T>(__fadd_rn(p.offset, __fmul_rn(p.scale, uniform)));
  }
}

}  // namespace

Status run_fill_random_cuda(const CudaFillRandomParams& p, CUstream_st* stream) {
  if (!is_float_dtype(p.dtype)) {
    return invalid_argument("fill_random: dtype: expected float32, float16 or bfloat16, found ", to_string(p.dtype));
  }
  if (p.elements < 0) return invalid_argument("fill_random: elements: expected at least 0, found ", p.elements);
  if (p.elements == 0) return ok_status();
  if (p.data == nullptr) return invalid_argument("fill_random: data: expected an address, found null");
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((p.elements + kThreads - 1) / kThreads, 8192));
  with_element_type(
      p.dtype, [&](auto tag) { fill_random_kernel<typename decltype(tag)::type><<<blocks, kThreads, 0, stream>>>(p); });
  return launch_status("fill_random");
}

}  // namespace onepass
