#include "attention/reference/merge.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace onepass {

float merge_attention_states(std::span<const AttentionState> parts, std::span<float> out) {
  constexpr float kEmpty = -std::numeric_limits<float>::infinity();
  float max = kEmpty;
  bool empty = true;
  for (const AttentionState& part : parts) {
    max = std::max(max, part.lse);
    empty = empty && part.lse == kEmpty;  // false for NaN, which shows in the result
  }
  if (empty) {
    std::fill(out.begin(), out.end(), 0.0f);
    return kEmpty;
  }

  double sum = 0.0;
  for (const AttentionState& part : parts) sum += std::exp(double{part.lse} - max);
  for (size_t i = 0; i < out.size(); ++i) {
    double value = 0.0;
    for (const AttentionState& part : parts) {
      if (part.lse != kEmpty) value += std::exp(double{part.lse} - max) * part.out[i];
    }
    out[i] = static_cast<float>(value / sum);
  }
  return static_cast<float>(max + std::log(sum));
}

float merge_attention_states(const AttentionState& a, const AttentionState& b, std::span<float> out) {
  const AttentionState parts[] = {a, b};
  return merge_attention_states(parts, out);
}

}  // namespace onepass
