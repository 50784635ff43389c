// Concatenation for messages. Debian's Abseil has a string_view of its own; this takes the standard one.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace onepass {
namespace internal {

template <typename T>
decltype(auto) str_cat_piece(const T& value) {
  if constexpr (std::is_same_v<T, std::string_view>) {
    return absl::string_view(value.data(), value.size());
  } else {
    return (value);
  }
}

}  // namespace internal

// str_cat("page ", 3, " of ", name): strings, integers, floats (six digits).
template <typename... Args>
std::string str_cat(const Args&... args) {
  return absl::StrCat(internal::str_cat_piece(args)...);
}

// Text of unknown origin, fit for a message of one line: control characters and bytes beyond ASCII as C escapes, cut to
// about `limit` bytes.
inline std::string printable(std::string_view text, size_t limit = 120) {
  const bool whole = text.size() <= limit;
  if (!whole) text = text.substr(0, limit);
  std::string result;
  for (const char c : text) {
    if (c >= ' ' && c <= '~') {
      result += c;
    } else {
      result += absl::CHexEscape(absl::string_view(&c, 1));
    }
  }
  return whole ? result : result + "...";
}

}  // namespace onepass
