// Attention over a set of keys, put together from attention over its parts.
//
// Over keys A, with scores s_j:  lse_A = log(sum_A exp(s_j)),  out_A = sum_A exp(s_j - lse_A) v_j.  The unnormalised
// sums of disjoint sets add up, so for A and B together
//     lse = log(exp(lse_A) + exp(lse_B)),    out = exp(lse_A - lse) out_A + exp(lse_B - lse) out_B,
// which is exact, not an approximation; (out, lse) under this operation is a commutative monoid whose neutral element
// is the empty part, (0, -inf). Source: Dao et al. 2022 (FlashAttention), section 3.1; Flash-Decoding (Dao et al.
// 2023).
//
// A sink is a part too: (out = 0, lse = sink), to be added once, and only where another part is not empty.
#pragma once

#include <span>

namespace onepass {

// Attention of one query row and head over a part of its keys. Does not own `out`.
struct AttentionState {
  const float* out = nullptr;  // [head_dim_v]; not read when the part is empty, and may then be null or NaN
  float lse = 0.0f;            // natural logarithm; -inf when the part is empty
};

// Merges parts of disjoint keys in the order given, in float64: writes the output row, [head_dim_v], and returns its
// lse. No parts, or empty ones alone, give out = 0 and -inf. One part that is not empty comes back bit for bit. `out`
// may be the same memory as a part's.
float merge_attention_states(std::span<const AttentionState> parts, std::span<float> out);

// Of two parts.
float merge_attention_states(const AttentionState& a, const AttentionState& b, std::span<float> out);

}  // namespace onepass
