// Memory asked for before it is needed.
#pragma once

#include <cstddef>

namespace onepass {

// Elements that a loop asks for ahead of the one it works on, when each lies in memory of its own.
constexpr size_t kPrefetchDistance = 6;

// Asks for the cache lines of `object`, without waiting for them. After a forward pass nothing of the host's own is in
// the caches any more, and a loop over requests would wait for each of them in turn.
template <typename T>
void prefetch(const T* object) {
  const auto* const begin = reinterpret_cast<const char*>(object);
  for (size_t offset = 0; offset < sizeof(T); offset += 64) __builtin_prefetch(begin + offset);
}

}  // namespace onepass
