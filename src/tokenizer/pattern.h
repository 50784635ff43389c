// The "pattern" of tokenizer.json's Split and Replace: {"String": "..."} or {"Regex": "..."}.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/regex.h"

namespace onepass {

class Pattern {
 public:
  static StatusOr<Pattern> from_json(const json& value, const std::string& where);
  static Pattern literal(std::string text) { return Pattern(std::move(text), std::nullopt); }

  // As Regex::find_spans. An empty literal matches nothing.
  StatusOr<std::vector<Span>> find_spans(std::string_view text) const;

  // `text` with every match replaced by `content`.
  StatusOr<std::string> replace(std::string_view text, std::string_view content) const;

 private:
  Pattern(std::string literal, std::optional<Regex> regex) : literal_(std::move(literal)), regex_(std::move(regex)) {}

  std::string literal_;
  std::optional<Regex> regex_;
};

}  // namespace onepass
