// Typed access to the fields of a parsed JSON object: a wrong type is a Status that names the place, never an
// exception.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/status.h"

namespace onepass {

using nlohmann::json;

// The member `key` of `object`; a null value if `object` is no object or has no such member.
const json& json_member(const json& object, const char* key);

// `where` names the object in error messages. Without a fallback, a missing or null member is an error.
StatusOr<std::string> string_field(const json& object, const char* key, const std::string& where);
StatusOr<std::string> string_field(const json& object, const char* key, const std::string& where,
                                   const std::string& fallback);
StatusOr<bool> bool_field(const json& object, const char* key, const std::string& where, bool fallback);
// In [low, high].
StatusOr<int64_t> int_field(const json& object, const char* key, const std::string& where, int64_t low, int64_t high);
// A string of exactly one character.
StatusOr<std::string> character_field(const json& object, const char* key, const std::string& where,
                                      const std::string& fallback);

}  // namespace onepass
