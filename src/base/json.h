// JSON from files and requests of unknown origin.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/status.h"

namespace onepass {

// More than any file of a model needs; copying, printing and comparing a value recurse once a level.
inline constexpr int kMaxJsonDepth = 64;

// Parses one JSON value; `where` (a path, say) begins the message of an error, which says at which line and column.
// Refuses invalid UTF-8, numbers beyond float64 and nesting deeper than kMaxJsonDepth. `callback` is nlohmann's: called
// for each element, it may keep the element (true) or drop it.
StatusOr<nlohmann::json> parse_json(std::string_view where, std::string_view text,
                                    const nlohmann::json::parser_callback_t& callback = nullptr);

// The value on one line of printable ASCII, cut to about `limit` bytes: what was found, for errors.
std::string json_excerpt(const nlohmann::json& value, size_t limit = 80);

}  // namespace onepass
