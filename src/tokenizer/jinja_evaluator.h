// Runs a syntax tree.
#pragma once

#include <string>

#include "tokenizer/jinja_ast.h"

namespace onepass::jinja {

// The text that `body` prints with `variables` as its globals. Throws Error with the line of the fault; bounded in
// steps, depth and size of output, so that no template runs forever.
std::string evaluate(const Body& body, const Dict& variables);

}  // namespace onepass::jinja
