// Results of parts of the keys, merged one after the other: a part's output is normalised, its lse a natural logarithm.
//
// The order of operations is the same whether the parts come from memory or from the loop of one thread block, and an
// empty part changes no bit; so with a fixed split size it does not matter who computed what.
#pragma once

#include "tensor/cuda/exp2.cuh"

namespace onepass {

// sum(out * exp(lse - max)) is kept by the caller; sum(exp(lse - max)) here.
struct Fold {
  float max;
  float sum;

  __device__ Fold() : max(minus_infinity()), sum(0.0f) {}

  struct Weights {
    float keep;  // of what was merged so far
    float add;   // of the new part
  };
  __device__ Weights add(float lse) {
    if (lse == minus_infinity()) return {1.0f, 0.0f};
    const float new_max = fmaxf(max, lse);
    const Weights weights{exp2_approx((max - new_max) * kLog2E), exp2_approx((lse - new_max) * kLog2E)};
    sum = __fmaf_rn(sum, weights.keep, weights.add);
    max = new_max;
    return weights;
  }

  // The sink takes its share of the denominator where there is a key at all; returns what the output is multiplied by.
  __device__ float finish(const float* sinks, int head) {
    if (sum == 0.0f) return 0.0f;
    const float keep = sinks != nullptr ? add(sinks[head]).keep : 1.0f;
    return __fdiv_rn(keep, sum);
  }
  __device__ float lse() const { return sum == 0.0f ? minus_infinity() : max + logf(sum); }
};

__device__ inline void fold(float4& into, const float4& part, const Fold::Weights& w) {
  into.x = __fmaf_rn(part.x, w.add, __fmul_rn(into.x, w.keep));
  into.y = __fmaf_rn(part.y, w.add, __fmul_rn(into.y, w.keep));
  into.z = __fmaf_rn(part.z, w.add, __fmul_rn(into.z, w.keep));
  into.w = __fmaf_rn(part.w, w.add, __fmul_rn(into.w, w.keep));
}

}  // namespace onepass
