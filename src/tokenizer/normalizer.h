// The "normalizer" of tokenizer.json: what is done to a text before it is cut up.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "tokenizer/json_fields.h"

namespace onepass {

class Normalizer {
 public:
  // Types: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip; an error names another one. `value`
  // null: nothing is done.
  static StatusOr<Normalizer> from_json(const json& value, const std::string& where);

  // `text` is well-formed UTF-8, and so is the result.
  StatusOr<std::string> apply(std::string text) const;

  struct Step;

 private:
  std::vector<std::shared_ptr<const Step>> steps_;
};

}  // namespace onepass
