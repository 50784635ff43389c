// The gated activation of one element, for the kernel that does nothing else and for the product that it follows.
#pragma once

namespace onepass {

__device__ inline float silu_and_mul(float gate, float up) { return up * (gate / (1.0f + __expf(-gate))); }

}  // namespace onepass
