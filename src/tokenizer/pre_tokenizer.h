// The "pre_tokenizer" of tokenizer.json: cuts a text into the pieces within which tokens are formed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "tokenizer/json_fields.h"

namespace onepass {

// A part of the text under way; `first`: it begins where the whole text began.
struct Piece {
  std::string text;
  bool first = false;
};

class PreTokenizer {
 public:
  // Types: Sequence, Split, ByteLevel, Metaspace, Digits, Whitespace, WhitespaceSplit, Punctuation; an error names
  // another one. `value` null: the text stays whole.
  static StatusOr<PreTokenizer> from_json(const json& value, const std::string& where);

  // Pieces of well-formed UTF-8, none empty.
  StatusOr<std::vector<Piece>> apply(Piece text) const;

  struct Step;

 private:
  std::vector<std::shared_ptr<const Step>> steps_;
};

}  // namespace onepass
