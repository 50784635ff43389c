// Root mean square normalisation (Zhang and Sennrich, "Root mean square layer normalization", 2019).
#pragma once

#include <cstdint>

#include "tensor/device.h"

namespace onepass {

// out[r][c] = x[r][c] / sqrt(mean(x[r]^2) + eps) * weight[c]. Rows may be heads of tokens: row r of group g begins at
// x + g * group_stride + r * row_stride (QK norm: groups are tokens, rows their heads). out may be x.
struct RmsNormParams {
  const float* x = nullptr;
  int64_t x_group_stride = 0;
  int64_t x_row_stride = 0;
  const float* weight = nullptr;  // [cols]
  float eps = 0.0f;
  float* out = nullptr;
  int64_t out_group_stride = 0;
  int64_t out_row_stride = 0;
  int64_t num_groups = 1;
  int64_t rows = 0;  // of each group
  int64_t cols = 0;
};
void run_rms_norm(const RmsNormParams& params, const Stream& stream);

}  // namespace onepass
