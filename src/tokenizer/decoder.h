// The "decoder" of tokenizer.json: token strings back to text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "tokenizer/json_fields.h"

namespace onepass {

class TokenDecoder {
 public:
  // Types: Sequence, ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip; null: the tokens are joined by spaces.
  static StatusOr<TokenDecoder> from_json(const json& value, const std::string& where);

  // The text of the tokens; bytes that are no UTF-8 become U+FFFD.
  std::string apply(std::vector<std::string> tokens) const;

  // ByteLevel and nothing else: a token's bytes do not depend on those around it.
  bool is_byte_level() const { return is_byte_level_; }

  struct Step;

 private:
  static Status read(const json& value, const std::string& where, int depth,
                     std::vector<std::shared_ptr<const Step>>& steps);

  std::vector<std::shared_ptr<const Step>> steps_;
  bool join_with_spaces_ = false;
  bool is_byte_level_ = false;
};

}  // namespace onepass
