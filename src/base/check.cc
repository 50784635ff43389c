#include "base/check.h"

#include "base/strings.h"

namespace onepass {

void check_failed(const char* file, int line, const std::string& message) {
  throw InvariantError(str_cat("invariant broken at ", file, ":", line, ": ", message));
}

}  // namespace onepass
