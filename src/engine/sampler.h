// Logits to the next token of one request.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/sampling_params.h"
#include "kernels/logit_adjustment.h"

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

// The error of a row of logits from which no token can be chosen.
Status no_finite_logit();

// The choice of one request's tokens. Draws depend on the seed and the number of tokens drawn before alone, never on
// other requests. Not thread-safe; different samplers may work at the same time.
class Sampler {
 public:
  // `end_tokens` cannot be chosen before params.min_new_tokens tokens are out. REQUIRES: validate(params) is ok.
  Sampler(SamplingParams params, std::span<const int32_t> prompt, const std::vector<int32_t>& end_tokens);

  const SamplingParams& params() const { return params_; }
  int num_sampled() const { return num_sampled_; }

  // `logits` [vocab_size] are changed. An error when no logit is a number (weights with NaN, say).
  StatusOr<SampledToken> sample(std::span<float> logits);

  // The same on a device that has the logits, where the next draw may begin before the host knows the token of the last
  // one: what the draw is made of, and its token once it is known.
  struct Draw {
    uint64_t index;
    // The draw before this one is under way: its token counts as generated too.
    bool counts_last_token;
    std::span<const LogitAdjustment> adjustments;  // until the next call
  };
  // REQUIRES: at most one draw is under way.
  Draw begin_draw();
  void end_draw(int32_t token);
  // The draw that is under way gave no token.
  void drop_draw() { --num_begun_; }

 private:
  LogitAdjustment& adjustment(int32_t token);
  int32_t choose(std::span<const float> logits, float max_logit, uint64_t index);

  const SamplingParams params_;
  const bool counts_generated_;  // some penalty asks for what has been generated
  std::vector<LogitAdjustment> adjustments_;
  absl::flat_hash_map<int32_t, size_t> places_;  // of a token in adjustments_
  bool has_bans_ = false;
  int num_begun_ = 0;
  int num_sampled_ = 0;
  std::vector<TokenLogprob> candidates_;  // scratch: token and weight
};

}  // namespace onepass
