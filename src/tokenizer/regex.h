// The regular expressions of tokenizer.json, run by PCRE2's compiler for native code.
//
// The files are written for Oniguruma with Ruby's syntax (what the `tokenizers` library uses). Where PCRE2 differs the
// pattern is translated (\s, \w and their complements are Unicode's; ^ and $ match at lines), and what has no
// counterpart (class intersection, nested classes) is refused.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace onepass {

// A part of a text, and whether the pattern matched it.
struct Span {
  size_t begin = 0;
  size_t end = 0;
  bool is_match = false;
};

// Immutable; any number of threads may search at once.
class Regex {
 public:
  // An error names the pattern (the beginning of a long one) and what is wrong with it.
  static StatusOr<Regex> compile(std::string_view pattern);

  // Cuts `text`, well-formed UTF-8, into matches and what lies between them, in order. An error: the match gave up (its
  // resource limits).
  StatusOr<std::vector<Span>> find_spans(std::string_view text) const;

 private:
  explicit Regex(std::shared_ptr<const void> code) : code_(std::move(code)) {}

  std::shared_ptr<const void> code_;  // a pcre2_code
};

// The pattern in PCRE2's syntax. For tests.
StatusOr<std::string> translate_pattern(std::string_view pattern);

}  // namespace onepass
