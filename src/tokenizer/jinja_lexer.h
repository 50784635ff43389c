// Template text to tokens, with Jinja2's whitespace rules as transformers sets them (trim_blocks and lstrip_blocks).
#pragma once

#include <string>
#include <vector>

namespace onepass::jinja {

struct Token {
  enum class Kind {
    kText,
    kBlockBegin,
    kBlockEnd,
    kPrintBegin,
    kPrintEnd,
    kName,
    kString,
    kInteger,
    kFloat,
    kOperator,
    kEnd
  };
  Kind kind = Kind::kEnd;
  std::string text;  // of a name, an operator, a string's value, a number's digits
  int line = 1;
};

// Throws Error for an unclosed tag, comment or string, or a character that begins no token.
std::vector<Token> tokenize(const std::string& source);

}  // namespace onepass::jinja
