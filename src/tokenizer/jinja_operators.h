// Jinja's operators on values, as Python computes them.
#pragma once

#include <string>

#include "tokenizer/jinja_value.h"

namespace onepass::jinja {

// op: "not", "-" or "+".
Value unary(const std::string& op, const Value& value);

// op: "+", "-", "*", "/", "//", "%", "**" or "~". An Error when the operands do not fit, a whole number overflows or
// the result would be too large.
Value binary(const std::string& op, const Value& a, const Value& b);

}  // namespace onepass::jinja
