// Rotary position embedding (Su et al., "RoFormer", 2021), in Hugging Face's layout: element i is rotated with element
// i + rotary_dim / 2.
#pragma once

#include <cstdint>

#include "tensor/device.h"

namespace onepass {

// x[t][h], for h in heads, is rotated in place by the angles positions[t] * inv_freq[i]; cos and sin are multiplied by
// attention_factor (1 but for YaRN). Angles are computed in double: float32 loses the position at 100k tokens.
struct RopeParams {
  float* x = nullptr;  // [num_tokens, num_heads, head_dim]; heads side by side
  int64_t row_stride = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // even, at most head_dim; the elements after it stay
  int64_t num_tokens = 0;
  const int32_t* positions = nullptr;  // [num_tokens]
  const double* inv_freq = nullptr;    // [rotary_dim / 2]
  float attention_factor = 1.0f;
};
void run_rope(const RopeParams& params, const Stream& stream);

}  // namespace onepass
