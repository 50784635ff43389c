// Division by a number known at launch: floor(n / divisor) for 0 <= n < 2^31. Granlund and Montgomery 1994.
#pragma once

#include <cstdint>

namespace onepass {

struct FastDivide {
  uint32_t divisor = 1;
  uint32_t multiplier = 1;
  uint32_t shift = 0;
};

inline FastDivide fast_divide(uint32_t divisor) {
  FastDivide result{.divisor = divisor};
  while ((uint64_t{1} << result.shift) < divisor) ++result.shift;
  const uint64_t excess = (uint64_t{1} << result.shift) - divisor;
  result.multiplier = static_cast<uint32_t>((excess << 32) / divisor + 1);
  return result;
}

#ifdef __CUDACC__
__device__ inline int divide(int n, const FastDivide& d) {
  return static_cast<int>((__umulhi(d.multiplier, static_cast<uint32_t>(n)) + static_cast<uint32_t>(n)) >> d.shift);
}
#endif

}  // namespace onepass
