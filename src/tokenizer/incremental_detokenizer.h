// Text as it is generated, token by token.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace onepass {

// The pieces that push() and flush() return, each well-formed UTF-8, make up tokenizer.decode(all ids). A token may end
// within a character, and a leading space may depend on what stands before: text is held back until it can no longer
// change. With one exception: byte tokens of a SentencePiece vocabulary, which decode() takes as ill-formed a run at a
// time, are returned as soon as they make up characters. A newline is such a token in Llama 2, and a stop string of a
// newline has to be found when it comes; when bytes that make no character follow it directly, it stays a newline here.
// Not thread-safe.
class IncrementalDetokenizer {
 public:
  // `tokenizer` must outlive it.
  explicit IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens = true)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  // What has become certain with this token; often its text, sometimes nothing.
  std::string push(int32_t id);
  // The rest, at the end.
  std::string flush();

 private:
  std::string new_text(bool at_end);
  // What of the bytes held back is certain.
  std::string certain_bytes(bool at_end);

  const Tokenizer& tokenizer_;
  const bool skip_special_tokens_;
  std::string bytes_;  // of a byte-level tokenizer, whose tokens need no context: those not returned yet
  // Otherwise: ids from some tokens back, whose text has been returned but gives the new ones their context, and the
  // new ones.
  std::vector<int32_t> window_;
  size_t num_returned_ = 0;  // ids of the window whose text has been returned
};

}  // namespace onepass
