// Finds stop strings in text that arrives in pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace onepass {

// Returns text as soon as no stop string can begin in it. Not thread-safe.
class StopStringMatcher {
 public:
  // `stops` are not empty strings. `include_stop`: the stop string itself is returned too.
  StopStringMatcher(std::vector<std::string> stops, bool include_stop)
      : stops_(std::move(stops)), include_stop_(include_stop) {}

  // What of the text so far can be shown; up to the stop string once one has matched, and nothing after. Without
  // `may_match` a stop string that `text` completes does not count; one that it begins may.
  std::string push(std::string_view text, bool may_match = true);
  // What was held back, at the end.
  std::string flush();

  bool matched() const { return !match_.empty(); }
  const std::string& match() const { return match_; }  // the one that begins first; of those the longest

 private:
  const std::vector<std::string> stops_;
  const bool include_stop_;
  std::string held_;
  size_t ignored_ = 0;  // bytes of held_ in which a stop string may begin but not end
  std::string match_;
};

}  // namespace onepass
