// Where tests find their data files.
#pragma once

#include <cstdlib>
#include <filesystem>

namespace onepass {

// The root of the source tree that a test was built from, or the folder that the environment variable
// ONEPASS_SOURCE_DIR names: another machine's copy of tests/golden and models. For tests alone (onepass_test defines
// the macro).
inline std::filesystem::path source_dir() {
  const char* const elsewhere = std::getenv("ONEPASS_SOURCE_DIR");
  return elsewhere != nullptr && *elsewhere != '\0' ? elsewhere : ONEPASS_SOURCE_DIR;
}

}  // namespace onepass
