#include "tokenizer/incremental_detokenizer.h"

#include <utility>

#include "tokenizer/unicode.h"

namespace onepass {

std::string IncrementalDetokenizer::push(int32_t id) {
  if (tokenizer_.is_byte_level()) {
    tokenizer_.append_bytes(id, skip_special_tokens_, bytes_);
    return certain_bytes(/*at_end=*/false);
  }
  window_.push_back(id);
  // A run of byte tokens is valid or not as a whole.
  if (tokenizer_.is_byte_token(id)) return "";
  return new_text(/*at_end=*/false);
}

std::string IncrementalDetokenizer::flush() {
  return tokenizer_.is_byte_level() ? certain_bytes(/*at_end=*/true) : new_text(/*at_end=*/true);
}

std::string IncrementalDetokenizer::certain_bytes(bool at_end) {
  if (is_valid_utf8(bytes_)) return std::exchange(bytes_, {});
  std::string text;
  std::string_view rest = bytes_;
  while (!rest.empty()) {
    const Utf8Step step = utf8_step(rest);
    if (step.truncated && !at_end) break;  // the next token may complete the character
    text += step.valid ? rest.substr(0, step.length) : kReplacementCharacter;
    rest.remove_prefix(step.length);
  }
  bytes_.erase(0, bytes_.size() - rest.size());
  return text;
}

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
