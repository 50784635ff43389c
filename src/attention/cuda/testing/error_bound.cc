#include "attention/cuda/testing/error_bound.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace onepass {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float rounded(float value, DType dtype) {
  store_float(&value, dtype, 0, value);
  return load_float(&value, dtype, 0);
}

int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

bool sees(const AttentionSpec& s, int64_t position, int64_t key) {
  if (s.causal && key > position) return false;
  if (s.window_left >= 0 && key < position - s.window_left) return false;
  if (s.window_right >= 0 && key > position + s.window_right) return false;
  return s.attention_chunk == 0 || floor_divide(key, s.attention_chunk) == floor_divide(position, s.attention_chunk);
}

// One request and key-value head: its keys and values side by side, in float32.
class Head {
 public:
  Head(const AttentionProblem& problem, int request, int head_kv)
      : problem_(problem), request_(request), head_kv_(head_kv) {
    const AttentionSpec& s = problem.spec();
    for (int j = 0; j < s.seqlens_k[request]; ++j) {
      for (int d = 0; d < s.head_dim; ++d) keys_.push_back(problem.key(request, j, head_kv, d));
      for (int d = 0; d < s.head_dim_v; ++d) values_.push_back(problem.value(request, j, head_kv, d));
    }
  }

  // Query row i of one of the query heads; `out` is [head_dim_v].
  void attend(int i, int head, float* out, float* lse) const {
    const AttentionSpec& s = problem_.spec();
    const AttentionParams& p = problem_.params();
    const int seqlen_k = s.seqlens_k[request_];
    const int64_t position = int64_t{seqlen_k} - s.seqlens_q[request_] + i;
    std::vector<float> query(s.head_dim), scores(seqlen_k, -kInfinity);
    for (int d = 0; d < s.head_dim; ++d) query[d] = problem_.query(request_, i, head, d);
    const int descale_at = request_ * s.num_heads_kv + head_kv_;
    const float scale = p.softmax_scale * (s.descales ? p.q_descale[descale_at] * p.k_descale[descale_at] : 1.0f);

    float max = s.sinks ? p.sinks[head] : -kInfinity;
    bool any = false;
    for (int j = 0; j < seqlen_k; ++j) {
      if (!sees(s, position, j)) continue;
      const float* key = keys_.data() + int64_t{j} * s.head_dim;
      float score = 0.0f;
      for (int d = 0; d < s.head_dim; ++d) score += query[d] * key[d];
      score *= scale;
      if (s.softcap > 0.0f) score = s.softcap * std::tanh(score / s.softcap);
      scores[j] = score;
      max = std::max(max, score);
      any = true;
    }
    std::fill_n(out, s.head_dim_v, 0.0f);
    *lse = -kInfinity;
    if (!any) return;

    float sum = s.sinks ? std::exp(p.sinks[head] - max) : 0.0f;
    for (int j = 0; j < seqlen_k; ++j) {
      if (scores[j] == -kInfinity) continue;
      const float weight = std::exp(scores[j] - max);
      sum += weight;
      const float low = rounded(weight, s.kv_dtype);
      const float* value = values_.data() + int64_t{j} * s.head_dim_v;
      for (int d = 0; d < s.head_dim_v; ++d) out[d] += low * value[d];
    }
    const float normalizer = (s.descales ? p.v_descale[descale_at] : 1.0f) / sum;
    for (int d = 0; d < s.head_dim_v; ++d) out[d] = rounded(out[d] * normalizer, s.out_dtype);
    *lse = max + std::log(sum);
  }

 private:
  const AttentionProblem& problem_;
  int request_, head_kv_;
  std::vector<float> keys_, values_;
};

}  // namespace

AttentionResult low_precision_attention(const AttentionProblem& problem, const Stream& stream) {
  const AttentionSpec& s = problem.spec();
  const AttentionParams& p = problem.params();
  AttentionResult result{.num_heads = s.num_heads, .head_dim_v = s.head_dim_v, .out = {}, .lse = {}};
  result.out.resize(int64_t{p.total_q} * s.num_heads * s.head_dim_v);
  result.lse.resize(int64_t{p.total_q} * s.num_heads);
  const int group = s.num_heads / s.num_heads_kv;
  const auto attend = [&](int64_t item, int) {
    const int request = static_cast<int>(item / s.num_heads_kv), head_kv = static_cast<int>(item % s.num_heads_kv);
    const Head head_data(problem, request, head_kv);
    for (int i = 0; i < s.seqlens_q[request]; ++i) {
      const int64_t row = p.cu_seqlens_q[request] + i;
      for (int head = head_kv * group; head < (head_kv + 1) * group; ++head) {
        head_data.attend(i, head, result.out.data() + (row * s.num_heads + head) * s.head_dim_v,
                         result.lse.data() + int64_t{head} * p.total_q + row);
      }
    }
  };
  const int64_t items = int64_t{p.batch} * s.num_heads_kv;
  if (stream.pool != nullptr) {
    stream.pool->parallel_dynamic(items, attend);
  } else {
    for (int64_t item = 0; item < items; ++item) attend(item, 0);
  }
  return result;
}

ErrorBound error_bound(const AttentionProblem& problem, const AttentionResult& exact, const Stream& stream) {
  const AttentionDifference low = compare(low_precision_attention(problem, stream), exact);
  double rounding = 0.0, largest = 0.0, largest_lse = 0.0;
  for (float value : exact.out) {
    rounding = std::max(rounding, std::abs(double{value} - rounded(value, problem.spec().out_dtype)));
    largest = std::max(largest, std::abs(double{value}));
  }
  for (float value : exact.lse) {
    if (std::isfinite(value)) largest_lse = std::max(largest_lse, std::abs(double{value}));
  }
  // The last terms are for float32's own arithmetic, in another order than the straightforward one.
  return {.out = 2.0 * low.max_out + 2.0 * rounding + 1e-5 * largest,
          .lse = 2.0 * low.max_lse + 1e-4 + 1e-5 * largest_lse};
}

}  // namespace onepass
