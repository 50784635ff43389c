#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "kernels/philox.h"

namespace onepass {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();

bool likelier(const TokenLogprob& a, const TokenLogprob& b) {
  return a.logprob != b.logprob ? a.logprob > b.logprob : a.token < b.token;
}

// The largest logit and its smallest index; NaN never wins. {-1, -inf} when there is none.
std::pair<int32_t, float> argmax(std::span<const float> logits) {
  int32_t best = -1;
  float best_logit = kImpossible;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > best_logit) {
      best = static_cast<int32_t>(i);
      best_logit = logits[i];
    }
  }
  return {best, best_logit};
}

// log(sum(exp(logits))) in double: vocabularies of 150,000 lose digits in float.
double log_sum_exp(std::span<const float> logits, float max_logit) {
  double sum = 0.0;
  for (float logit : logits) {
    if (logit > kImpossible) sum += std::exp(logit - max_logit);
  }
  return max_logit + std::log(sum);
}

std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, double normalizer, int count) {
  std::vector<TokenLogprob> all(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    all[i] = {static_cast<int32_t>(i),
              std::isnan(logits[i]) ? kImpossible : static_cast<float>(logits[i] - normalizer)};
  }
  const auto end = all.begin() + std::min<size_t>(count, all.size());
  std::partial_sort(all.begin(), end, all.end(), likelier);
  all.erase(end, all.end());
  return all;
}

float adjusted(float logit, const LogitAdjustment& adjustment, const SamplingParams& params) {
  if (adjustment.is_banned != 0) return kImpossible;
  logit += adjustment.bias;
  if (adjustment.is_repeated != 0) {
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  }
  if (adjustment.count > 0) {
    logit -= params.presence_penalty + params.frequency_penalty * static_cast<float>(adjustment.count);
  }
  return logit;
}

}  // namespace

Status no_finite_logit() {
  return absl::InternalError("the model's logits hold no finite number: its weights may be damaged");
}

Sampler::Sampler(SamplingParams params, std::span<const int32_t> prompt, const std::vector<int32_t>& end_tokens)
    : params_(std::move(params)),
      counts_generated_(params_.repetition_penalty != 1.0f || params_.presence_penalty != 0.0f ||
                        params_.frequency_penalty != 0.0f) {
  for (const auto& [token, bias] : params_.logit_bias) adjustment(token).bias += bias;
  if (params_.repetition_penalty != 1.0f) {
    for (const int32_t token : prompt) adjustment(token).is_repeated = 1;
  }
  if (params_.min_new_tokens > 0) {
    for (const int32_t token : end_tokens) adjustment(token).is_banned = 1;
    has_bans_ = !end_tokens.empty();
  }
}

LogitAdjustment& Sampler::adjustment(int32_t token) {
  const auto [place, is_new] = places_.try_emplace(token, adjustments_.size());
  if (is_new) adjustments_.push_back({.token = token});
  return adjustments_[place->second];
}

Sampler::Draw Sampler::begin_draw() {
  ONEPASS_CHECK_LE(num_begun_ - num_sampled_, 1);
  const bool is_under_way = num_begun_ > num_sampled_;
  const int index = num_begun_++;
  if (has_bans_ && index >= params_.min_new_tokens) {
    for (LogitAdjustment& adjustment : adjustments_) adjustment.is_banned = 0;
    has_bans_ = false;
  }
  const bool acts = has_bans_ || counts_generated_ || !params_.logit_bias.empty();
  return {.index = static_cast<uint64_t>(index),
          .counts_last_token = is_under_way && counts_generated_,
          .adjustments = acts ? std::span<const LogitAdjustment>(adjustments_) : std::span<const LogitAdjustment>()};
}

void Sampler::end_draw(int32_t token) {
  ONEPASS_CHECK_LE(num_sampled_ + 1, num_begun_);
  ++num_sampled_;
  if (!counts_generated_) return;
  LogitAdjustment& generated = adjustment(token);
  ++generated.count;
  generated.is_repeated = 1;
}

int32_t Sampler::choose(std::span<const float> logits, float max_logit, uint64_t index) {
  // Weights exp((logit - max) / temperature): the likeliest has weight 1, so min_p is a bound on them.
  candidates_.clear();
  double total = 0.0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const float weight = logits[i] > kImpossible ? std::exp((logits[i] - max_logit) / params_.temperature) : 0.0f;
    if (weight > 0.0f) {
      candidates_.push_back({static_cast<int32_t>(i), weight});
      total += weight;
    }
  }
  // Sort only as much as is needed: the first `sorted` candidates are the likeliest, in order.
  size_t sorted = 0;
  const auto sort_first = [&](size_t count) {
    count = std::min(count, candidates_.size());
    if (count <= sorted) return;
    std::partial_sort(candidates_.begin() + sorted, candidates_.begin() + count, candidates_.end(), likelier);
    sorted = count;
  };
  size_t kept = candidates_.size();
  if (params_.top_k > 0 && static_cast<size_t>(params_.top_k) < kept) {
    kept = params_.top_k;
    sort_first(kept);
    total = 0.0;
    for (size_t i = 0; i < kept; ++i) total += candidates_[i].logprob;
  }
  if (params_.top_p < 1.0f) {
    double mass = 0.0;
    size_t count = 0;
    while (count < kept && mass < params_.top_p * total) {
      if (count == sorted) sort_first(std::min(kept, std::max<size_t>(64, sorted * 4)));
      mass += candidates_[count++].logprob;
    }
    kept = count;
    total = mass;
  }
  if (params_.min_p > 0.0f) {
    const auto end = std::stable_partition(candidates_.begin(), candidates_.begin() + kept,
                                           [&](const TokenLogprob& c) { return c.logprob >= params_.min_p; });
    kept = end - candidates_.begin();
    total = 0.0;
    for (size_t i = 0; i < kept; ++i) total += candidates_[i].logprob;
  }
  double target = philox_uniform(params_.seed, index) * total;
  for (size_t i = 0; i + 1 < kept; ++i) {
    target -= candidates_[i].logprob;
    if (target < 0) return candidates_[i].token;
  }
  return candidates_[kept - 1].token;
}

StatusOr<SampledToken> Sampler::sample(std::span<float> logits) {
  SampledToken result;
  double normalizer = 0.0;
  std::vector<float> raw;
  if (params_.logprobs >= 0) {
    const auto [best, max_logit] = argmax(logits);
    if (best < 0) return no_finite_logit();
    normalizer = log_sum_exp(logits, max_logit);
    result.top = top_logprobs(logits, normalizer, params_.logprobs);
    raw.assign(logits.begin(), logits.end());
  }
  const Draw draw = begin_draw();
  for (const LogitAdjustment& adjustment : draw.adjustments) {
    logits[adjustment.token] = adjusted(logits[adjustment.token], adjustment, params_);
  }
  const auto [best, max_logit] = argmax(logits);
  if (best < 0 || !std::isfinite(max_logit)) {
    drop_draw();
    return no_finite_logit();
  }
  result.token = params_.temperature == 0.0f ? best : choose(logits, max_logit, draw.index);
  if (params_.logprobs >= 0) result.logprob = static_cast<float>(raw[result.token] - normalizer);
  end_draw(result.token);
  return result;
}

}  // namespace onepass
