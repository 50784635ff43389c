// Numbers that a test takes from its environment.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace onepass {

// The environment variable's value, or `otherwise` where it is not set; an error where it is no whole number of
// `least` or more: a test that took it for 0 would loop no times, and pass.
StatusOr<int64_t> whole_number_from_environment(const char* name, int64_t otherwise, int64_t least);

}  // namespace onepass
