// How much memory this machine has.
#pragma once

#include <cstdint>

namespace onepass {

// Physical memory in bytes; INT64_MAX when the system does not say.
int64_t machine_memory();

// What of it can be had now without swapping, in bytes; INT64_MAX when the system does not say.
int64_t available_memory();

}  // namespace onepass
