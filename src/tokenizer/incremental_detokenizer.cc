#include "tokenizer/incremental_detokenizer.h"

#include "tokenizer/unicode.h"

namespace onepass {

std::string IncrementalDetokenizer::push(int32_t id) {
  window_.push_back(id);
  // A run of byte tokens is valid or not as a whole.
  if (tokenizer_.is_byte_token(id)) return "";
  return new_text(/*at_end=*/false);
}

std::string IncrementalDetokenizer::flush() { return new_text(/*at_end=*/true); }

std::string IncrementalDetokenizer::new_text(bool at_end) {
  const std::string before = tokenizer_.decode(std::span(window_).first(num_returned_), skip_special_tokens_);
  const std::string all = tokenizer_.decode(window_, skip_special_tokens_);
  if (all.size() <= before.size()) return "";
  // U+FFFD at the end may be the first part of a character.
  if (!at_end && all.ends_with(kReplacementCharacter)) return "";
  std::string text = all.substr(before.size());
  // The tokens just returned are the context of the next ones.
  window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(num_returned_));
  num_returned_ = window_.size();
  return text;
}

}  // namespace onepass
