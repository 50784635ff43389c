// How far a model's weights are loaded, in one line of a terminal.
#pragma once

#include <chrono>
#include <cstdio>

namespace onepass {

// Writes nothing until loading has taken a while: most models are there at once. Clears its line when all is loaded, or
// when it goes. Used by one thread at a time.
class LoadProgress {
 public:
  using Clock = std::chrono::steady_clock;

  // `terminal` is not owned.
  explicit LoadProgress(std::FILE* terminal, Clock::time_point start = Clock::now())
      : terminal_(terminal), start_(start) {}
  ~LoadProgress() { clear(); }
  LoadProgress(const LoadProgress&) = delete;
  LoadProgress& operator=(const LoadProgress&) = delete;

  // `done` of `total` parts are there.
  void show(int done, int total, Clock::time_point now = Clock::now());

 private:
  void clear();

  std::FILE* const terminal_;
  const Clock::time_point start_;
  Clock::time_point shown_;
  bool is_shown_ = false;
};

}  // namespace onepass
