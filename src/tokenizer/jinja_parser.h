// Tokens to a syntax tree: Jinja2's grammar without inheritance, include, import and call blocks, which are refused.
#pragma once

#include <string>

#include "tokenizer/jinja_ast.h"

namespace onepass::jinja {

// Throws Error with the line of the fault.
Body parse(const std::string& source);

}  // namespace onepass::jinja
