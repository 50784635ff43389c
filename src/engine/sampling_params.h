// How the next token is chosen and when a request ends. One per request.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace onepass {

// The order in which the fields act: logit_bias, repetition_penalty, presence and frequency penalties, min_new_tokens
// (end tokens are impossible until then), temperature, top_k, top_p, min_p. Names and meanings are vLLM's
// SamplingParams; as there, the repetition penalty counts the prompt's tokens and the other two only generated ones,
// and a stop string that one of the first min_new_tokens completes is text like any other.
struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy; the smallest id wins a tie
  int top_k = 0;             // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;  // tokens less likely than min_p times the likeliest one are dropped
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id -> added to its logit
  uint64_t seed = 0;

  int max_new_tokens = 128;
  int min_new_tokens = 0;
  std::vector<int32_t> stop_token_ids;  // end the request; not part of its text
  std::vector<std::string> stop;        // stop strings
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;  // the model's own end tokens do not end the request

  // -1: none; n >= 0: the chosen token's log-probability and those of the n likeliest tokens. Of the model's own
  // distribution: before penalties and temperature.
  int logprobs = -1;
};

constexpr int kMaxTopLogprobs = 100;
// Wider than any use, and narrow enough that no finite logit becomes infinite.
constexpr float kMinRepetitionPenalty = 0.01f, kMaxRepetitionPenalty = 100.0f;
constexpr float kMaxLogitBias = 100.0f;  // either way, as in OpenAI's interface

// Names the first field that is out of range whatever the model.
Status validate(const SamplingParams& params);
// The same, with token ids held to `vocab_size`.
Status validate(const SamplingParams& params, int vocab_size);

}  // namespace onepass
