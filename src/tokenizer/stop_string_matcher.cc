#include "tokenizer/stop_string_matcher.h"

#include <algorithm>
#include <utility>

namespace onepass {

std::string StopStringMatcher::push(std::string_view text, bool may_match) {
  if (stops_.empty()) return std::string(text);
  if (matched()) return "";
  held_ += text;
  if (!may_match) ignored_ = held_.size();
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop, ignored_ < stop.size() ? 0 : ignored_ - stop.size() + 1);
    if (at == std::string::npos) continue;
    if (at < first || (at == first && stop.size() > match_.size())) {
      first = at;
      match_ = stop;
    }
  }
  if (matched()) {
    std::string shown = held_.substr(0, first + (include_stop_ ? match_.size() : 0));
    held_.clear();
    return shown;
  }
  // The longest end of the text that a stop string begins with stays.
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (std::string_view(held_).substr(held_.size() - length) == std::string_view(stop).substr(0, length))
        keep = length;
    }
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  ignored_ -= std::min(ignored_, shown.size());
  return shown;
}

std::string StopStringMatcher::flush() { return matched() ? "" : std::exchange(held_, ""); }

}  // namespace onepass
