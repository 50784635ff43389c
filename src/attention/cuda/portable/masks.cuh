// Small arithmetic of the portable kernels: division, the mask of a row, the scale of the scores.
#pragma once

#include <cstdint>

#include "attention/cuda/portable/kernel_params.h"
#include "tensor/cuda/exp2.cuh"

namespace onepass::portable {

inline constexpr unsigned kFullWarp = 0xffffffffu;

// Keys [begin, end) that a query row at `position` sees; empty when end <= begin. Both ends grow with the position, so
// the rows of a tile see [begin of the first, end of the last) together and [begin of the last, end of the first) each.
struct KeyRange {
  int begin = 0;
  int end = 0;
};

__device__ inline KeyRange visible_keys(const KernelParams& p, int position, int seqlen_k) {
  int begin = 0, end = p.causal ? min(seqlen_k, position + 1) : seqlen_k;
  if (p.local) {
    if (p.window_left >= 0) begin = max(begin, position - p.window_left);
    if (p.window_right >= 0) end = min(end, position + p.window_right + 1);
    if (p.attention_chunk > 0) {
      int chunk = position / p.attention_chunk;
      if (position < 0 && chunk * p.attention_chunk != position) --chunk;
      begin = max(begin, chunk * p.attention_chunk);
      end = min(end, chunk * p.attention_chunk + p.attention_chunk);
    }
  }
  return {min(begin, seqlen_k), max(end, 0)};
}

// From q.k to the exponent of 2: exp(score) = exp2(scale * transform(q.k)). The transform is the identity unless there
// is a soft cap, or a scale that is not positive, under which the greatest q.k is not the greatest score.
struct ScoreScale {
  float scale = 1.0f;
  float in = 0.0f;
  float out = 0.0f;
  bool capped = false;
  bool transformed = false;

  ScoreScale() = default;
  __device__ ScoreScale(const KernelParams& p, int request, int head_kv) {
    float score_scale = p.softmax_scale;
    const int at = request * p.num_heads_kv + head_kv;
    if (p.q_descale != nullptr) score_scale *= p.q_descale[at];
    if (p.k_descale != nullptr) score_scale *= p.k_descale[at];
    capped = p.softcap > 0.0f;
    transformed = capped || !(score_scale > 0.0f);
    scale = transformed ? 1.0f : score_scale * kLog2E;
    in = capped ? 2.0f * kLog2E * score_scale / p.softcap : score_scale * kLog2E;
    out = p.softcap * kLog2E;
  }

  // tanh(x) = 1 - 2 / (exp(2 x) + 1)
  __device__ float transform(float dot) const {
    return capped ? out * (1.0f - __fdividef(2.0f, 1.0f + exp2_approx(dot * in))) : dot * in;
  }
};

}  // namespace onepass::portable
