#include "attention/cuda/testing/environment.h"

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "base/strings.h"

namespace onepass {

StatusOr<int64_t> whole_number_from_environment(const char* name, int64_t otherwise, int64_t least) {
  const char* const value = std::getenv(name);
  if (value == nullptr) return otherwise;
  const std::string_view text(value);
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < least) {
    return invalid_argument(name, ": expected a whole number of ", least, " or more, found \"", printable(text), "\"");
  }
  return number;
}

}  // namespace onepass
