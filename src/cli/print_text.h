// Text to stdout as it comes.
#pragma once

#include <cstdio>
#include <string_view>

namespace onepass {

// Whether all of it could be written is known when stdout is flushed in the end.
inline void print_text(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

}  // namespace onepass
