// Logits to the next token of one request.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "engine/sampling_params.h"

namespace onepass {

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0.0f;           // when params.logprobs >= 0
  std::vector<TokenLogprob> top;  // the params.logprobs likeliest, in descending order
};

// The choice of one request's tokens. Draws depend on the seed and the number of tokens drawn before alone, never on
// other requests. Not thread-safe; different samplers may work at the same time.
class Sampler {
 public:
  // `end_tokens` cannot be chosen before params.min_new_tokens tokens are out. REQUIRES: validate(params) is ok.
  Sampler(SamplingParams params, std::span<const int32_t> prompt, std::vector<int32_t> end_tokens);

  const SamplingParams& params() const { return params_; }
  int num_sampled() const { return num_sampled_; }

  // `logits` [vocab_size] are changed. An error when no logit is a number (weights with NaN, say).
  StatusOr<SampledToken> sample(std::span<float> logits);

 private:
  void apply_penalties(std::span<float> logits) const;
  int32_t draw(std::span<const float> logits, float max_logit);

  const SamplingParams params_;
  const std::vector<int32_t> end_tokens_;
  absl::flat_hash_set<int32_t> prompt_tokens_;  // kept only when the repetition penalty needs them
  absl::flat_hash_map<int32_t, int> generated_counts_;
  int num_sampled_ = 0;
  std::vector<TokenLogprob> candidates_;  // scratch: token and weight
};

}  // namespace onepass
