// Gated activations of the feed-forward layer (Shazeer, "GLU variants improve Transformer", 2020).
#pragma once

#include <cstdint>

#include "tensor/device.h"

namespace onepass {

// out[r][c] = silu(gate_up[r][c]) * gate_up[r][cols + c].
struct SiluAndMulParams {
  const float* gate_up = nullptr;  // [rows, 2 * cols]
  int64_t gate_up_row_stride = 0;
  float* out = nullptr;  // [rows, cols]
  int64_t out_row_stride = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};
void run_silu_and_mul(const SiluAndMulParams& params, const Stream& stream);

}  // namespace onepass
