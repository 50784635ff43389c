#include "base/json.h"

#include <algorithm>

namespace onepass {
namespace {

using nlohmann::json;

// How deep arrays and objects are nested at most, brackets within strings aside.
int nesting_depth(std::string_view text) {
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

StatusOr<json> parse_json(std::string_view where, std::string_view text, const json::parser_callback_t& callback) {
  if (const int depth = nesting_depth(text); depth > kMaxJsonDepth) {
    return invalid_argument(where, ": expected JSON nested at most ", kMaxJsonDepth, " deep, found ", depth);
  }
  try {
    return json::parse(text.begin(), text.end(), callback);
  } catch (const json::exception& error) {
    std::string_view message = error.what();  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    if (const size_t end = message.find("] "); end != std::string_view::npos) message.remove_prefix(end + 2);
    return invalid_argument(where, ": expected JSON, found ", printable(message, 200));
  }
}

std::string json_excerpt(const json& value, size_t limit) {
  return printable(value.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace), limit);
}

}  // namespace onepass
