#include "scheduler/completion.h"

#include <algorithm>

namespace onepass {

std::vector<int32_t> end_tokens(const SamplingParams& sampling, const std::vector<int32_t>& eos_token_ids) {
  std::vector<int32_t> tokens = sampling.stop_token_ids;
  if (!sampling.ignore_eos) tokens.insert(tokens.end(), eos_token_ids.begin(), eos_token_ids.end());
  return tokens;
}

Completion::Completion(const Tokenizer* tokenizer, const SamplingParams& sampling, std::vector<int32_t> end_tokens,
                       int max_new_tokens)
    : end_tokens_(std::move(end_tokens)),
      max_new_tokens_(max_new_tokens),
      min_new_tokens_(sampling.min_new_tokens),
      stops_(sampling.stop, sampling.include_stop_str_in_output) {
  if (tokenizer != nullptr) detokenizer_.emplace(*tokenizer);
}

std::string Completion::push(int32_t token) {
  ++num_tokens_;
  if (std::find(end_tokens_.begin(), end_tokens_.end(), token) != end_tokens_.end()) {
    finish_reason_ = FinishReason::kStop;
    return flush();
  }
  std::string text = detokenizer_ ? detokenizer_->push(token) : std::string();
  text = stops_.push(text, may_stop());
  if (stops_.matched()) {
    finish_reason_ = FinishReason::kStop;
  } else if (num_tokens_ >= max_new_tokens_) {
    text += flush();
    finish_reason_ = stops_.matched() ? FinishReason::kStop : FinishReason::kLength;
  }
  return text;
}

std::string Completion::flush() {
  std::string text = detokenizer_ ? stops_.push(detokenizer_->flush(), may_stop()) : std::string();
  text += stops_.flush();
  return text;
}

}  // namespace onepass
