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
  // U+FFFD at the end may be the first part of a character.
  if (!at_end && all.ends_with(kReplacementCharacter)) return "";
  std::string text;
  if (all.starts_with(before)) {
    text = all.substr(before.size());
  } else {
    // A run of byte tokens of which a part has been returned has turned out ill-formed, and with it, for decode(), that
    // part too. It stays as it was; the new tokens, which begin with bytes, stand for themselves.
    text = tokenizer_.decode(std::span(window_).subspan(num_returned_), skip_special_tokens_);
  }
  if (text.empty()) return "";
  // The tokens just returned are the context of the next ones.
  window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(num_returned_));
  num_returned_ = window_.size();
  return text;
}

}  // namespace onepass
