#include "engine/sampling_params.h"

#include <cmath>

namespace onepass {

Status validate(const SamplingParams& p) {
  const auto expect = [](bool good, const char* name, const char* expected, double found) {
    return good ? ok_status() : invalid_argument(name, ": expected ", expected, ", found ", found);
  };
  ONEPASS_RETURN_IF_ERROR(
      expect(p.temperature >= 0 && std::isfinite(p.temperature), "temperature", "0 or more", p.temperature));
  ONEPASS_RETURN_IF_ERROR(expect(p.top_k >= 0, "top_k", "0 (off) or more", p.top_k));
  ONEPASS_RETURN_IF_ERROR(expect(p.top_p > 0 && p.top_p <= 1, "top_p", "more than 0 and at most 1", p.top_p));
  ONEPASS_RETURN_IF_ERROR(expect(p.min_p >= 0 && p.min_p <= 1, "min_p", "0 to 1", p.min_p));
  ONEPASS_RETURN_IF_ERROR(
      expect(p.repetition_penalty >= kMinRepetitionPenalty && p.repetition_penalty <= kMaxRepetitionPenalty,
             "repetition_penalty", "0.01 to 100", p.repetition_penalty));
  ONEPASS_RETURN_IF_ERROR(
      expect(std::fabs(p.presence_penalty) <= 2, "presence_penalty", "-2 to 2", p.presence_penalty));
  ONEPASS_RETURN_IF_ERROR(
      expect(std::fabs(p.frequency_penalty) <= 2, "frequency_penalty", "-2 to 2", p.frequency_penalty));
  ONEPASS_RETURN_IF_ERROR(expect(p.max_new_tokens >= 1, "max_new_tokens", "at least 1", p.max_new_tokens));
  ONEPASS_RETURN_IF_ERROR(expect(p.min_new_tokens >= 0 && p.min_new_tokens <= p.max_new_tokens, "min_new_tokens",
                                 "0 to max_new_tokens", p.min_new_tokens));
  ONEPASS_RETURN_IF_ERROR(
      expect(p.logprobs >= -1 && p.logprobs <= kMaxTopLogprobs, "logprobs", "at most 100", p.logprobs));
  for (const auto& [token, bias] : p.logit_bias) {
    if (token < 0) return invalid_argument("logit_bias: token id: expected 0 or more, found ", token);
    ONEPASS_RETURN_IF_ERROR(expect(std::fabs(bias) <= kMaxLogitBias, "logit_bias", "-100 to 100", bias));
  }
  for (int32_t token : p.stop_token_ids) {
    if (token < 0) return invalid_argument("stop_token_ids: expected 0 or more, found ", token);
  }
  for (const std::string& stop : p.stop) {
    if (stop.empty()) return invalid_argument("stop: expected strings that are not empty");
  }
  return ok_status();
}

Status validate(const SamplingParams& p, int vocab_size) {
  ONEPASS_RETURN_IF_ERROR(validate(p));
  for (const auto& [token, bias] : p.logit_bias) {
    if (token >= vocab_size) {
      return invalid_argument("logit_bias: token id: expected 0 to ", vocab_size - 1, ", found ", token);
    }
  }
  for (int32_t token : p.stop_token_ids) {
    if (token >= vocab_size) {
      return invalid_argument("stop_token_ids: expected 0 to ", vocab_size - 1, ", found ", token);
    }
  }
  return ok_status();
}

}  // namespace onepass
