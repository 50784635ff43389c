#include "tokenizer/json_fields.h"

#include "tokenizer/unicode.h"

namespace onepass {
namespace {

Status wrong_type(const std::string& where, const char* key, const char* expected, const json& found) {
  return invalid_argument(where, ": ", key, ": expected ", expected, ", found ", found.type_name());
}

}  // namespace

const json& json_member(const json& object, const char* key) {
  static const json null;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

StatusOr<std::string> string_field(const json& object, const char* key, const std::string& where) {
  const json& value = json_member(object, key);
  if (!value.is_string()) return wrong_type(where, key, "a string", value);
  return value.get_ref<const std::string&>();
}

StatusOr<std::string> string_field(const json& object, const char* key, const std::string& where,
                                   const std::string& fallback) {
  if (json_member(object, key).is_null()) return fallback;
  return string_field(object, key, where);
}

StatusOr<bool> bool_field(const json& object, const char* key, const std::string& where, bool fallback) {
  const json& value = json_member(object, key);
  if (value.is_null()) return fallback;
  if (!value.is_boolean()) return wrong_type(where, key, "true or false", value);
  return value.get<bool>();
}

StatusOr<int64_t> int_field(const json& object, const char* key, const std::string& where, int64_t low, int64_t high) {
  const json& value = json_member(object, key);
  if (!value.is_number_integer()) return wrong_type(where, key, "an integer", value);
  const bool too_large = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  const int64_t number = value.get<int64_t>();
  if (too_large || number < low || number > high) {
    return invalid_argument(where, ": ", key, ": expected ", low, " to ", high, ", found ", value.dump());
  }
  return number;
}

StatusOr<std::string> character_field(const json& object, const char* key, const std::string& where,
                                      const std::string& fallback) {
  ONEPASS_ASSIGN_OR_RETURN(std::string text, string_field(object, key, where, fallback));
  size_t length = 0;
  if (!text.empty()) next_code_point(text, length);
  if (text.empty() || length != text.size()) {
    return invalid_argument(where, ": ", key, ": expected one character, found '", text, "'");
  }
  return text;
}

}  // namespace onepass
