// One answer as it grows: tokens in, text out, until something ends it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/finish_reason.h"
#include "engine/sampling_params.h"
#include "tokenizer/incremental_detokenizer.h"
#include "tokenizer/stop_string_matcher.h"

namespace onepass {

class Completion {
 public:
  // `tokenizer` outlives it; null: no text. `max_new_tokens`: what parameters, context and cache allow.
  Completion(const Tokenizer* tokenizer, const SamplingParams& sampling, std::vector<int32_t> end_tokens,
             int max_new_tokens);

  // The next token; returns the text that has become certain with it.
  std::string push(int32_t token);
  // The text that was held back, for an answer that is ended from outside.
  std::string flush();

  // No more than `count` tokens after all, if that is fewer. REQUIRES: count >= 1, no token has been pushed.
  void limit(int count) { max_new_tokens_ = std::min(max_new_tokens_, count); }

  int num_tokens() const { return num_tokens_; }
  std::optional<FinishReason> finish_reason() const { return finish_reason_; }
  const std::string& matched_stop() const { return stops_.match(); }

 private:
  // A stop string ends the answer only beyond its first min_new_tokens tokens, as in vLLM.
  bool may_stop() const { return num_tokens_ > min_new_tokens_; }

  const std::vector<int32_t> end_tokens_;
  int max_new_tokens_;
  const int min_new_tokens_;
  int num_tokens_ = 0;
  std::optional<FinishReason> finish_reason_;
  std::optional<IncrementalDetokenizer> detokenizer_;
  StopStringMatcher stops_;
};

// The tokens that end an answer: the parameters' and, unless they are ignored, the model's.
std::vector<int32_t> end_tokens(const SamplingParams& sampling, const std::vector<int32_t>& eos_token_ids);

}  // namespace onepass
