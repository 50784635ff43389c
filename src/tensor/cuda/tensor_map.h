// Tensor maps: what the copy engine of Hopper and later knows of a tensor in global memory.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <span>

#include "base/status.h"
#include "tensor/dtype.h"

namespace onepass {

// Of a tensor of 2-byte floats and boxes cut from it, dimension 0 innermost with stride 1, `strides` (elements) those
// of the other dimensions. The box's innermost 64 elements become rows of 128 bytes, swizzled by 128 bytes; what lies
// outside the tensor is copied as zeros. `promotion`: how much the L2 cache fetches at once. Needs no link to the
// driver's library: the runtime is asked for the entry point.
StatusOr<CUtensorMap> make_tensor_map(const void* data, DType dtype, std::span<const int64_t> sizes,
                                      std::span<const int64_t> strides, std::span<const int> box,
                                      CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B);

}  // namespace onepass
