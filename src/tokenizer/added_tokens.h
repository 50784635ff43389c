// Tokens that are found in a text as they stand, before anything else is done with it: special tokens and others.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tokenizer/json_fields.h"

namespace onepass {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool normalized = false;   // found in the normalized text instead of the raw one
  bool single_word = false;  // only where no word character stands beside it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and behind it
};

// `list` is tokenizer.json's "added_tokens"; null: none.
StatusOr<std::vector<AddedToken>> parse_added_tokens(const json& list, const std::string& where);

// A part of a text: an added token, or (id -1) text between them.
struct AddedSpan {
  std::string_view text;
  int32_t id = -1;
};

// Finds tokens, leftmost first and the longest of those that begin at one place. Immutable.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  // Parts of `text` in order, none empty. With `special` false, special tokens are text like any other.
  std::vector<AddedSpan> split(std::string_view text, bool special) const;

 private:
  const AddedToken* match_at(std::string_view text, size_t at, bool special) const;

  std::vector<AddedToken> tokens_;           // the longest first
  std::vector<int32_t> by_first_byte_[256];  // indices into tokens_
};

}  // namespace onepass
