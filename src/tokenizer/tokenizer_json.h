// Reads tokenizer.json: the large tables (model.vocab, model.merges) straight into their containers, the rest as a JSON
// value.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/vocab.h"

namespace onepass {

struct TokenizerJson {
  json root;    // without model.vocab (where it is an object) and model.merges (where it is an array)
  Vocab vocab;  // not frozen
  MergeList merges;
  bool has_vocab = false;
  bool has_merges = false;
};

// An error names `path` (used for nothing else), the place and what was found. Ill-formed text never throws.
StatusOr<TokenizerJson> parse_tokenizer_json(std::string_view text, const std::string& path);

// A small JSON file of which only some keys matter; a missing file is a null value.
StatusOr<json> read_optional_json(const std::string& path);

}  // namespace onepass
