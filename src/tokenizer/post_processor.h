// The "post_processor" of tokenizer.json: the special tokens put around the ids of a text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "tokenizer/json_fields.h"

namespace onepass {

class PostProcessor {
 public:
  // Types: TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel (which changes no ids), Sequence; null:
  // nothing is added.
  static StatusOr<PostProcessor> from_json(const json& value, const std::string& where);

  std::vector<int32_t> apply(std::vector<int32_t> ids) const;

 private:
  static Status read(const json& value, const std::string& where, int depth, PostProcessor& out);

  std::vector<int32_t> before_, behind_;
};

}  // namespace onepass
