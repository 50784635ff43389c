#include "cli/load_progress.h"

#include <algorithm>
#include <string>

namespace onepass {
namespace {

constexpr std::chrono::milliseconds kPatience(300), kInterval(100);
constexpr int kWidth = 24;

}  // namespace

void LoadProgress::show(int done, int total, Clock::time_point now) {
  if (done >= total) return clear();
  if (now - start_ < kPatience || (is_shown_ && now - shown_ < kInterval)) return;
  std::string bar(static_cast<size_t>(kWidth) * std::max(0, done) / total, '#');
  bar.resize(kWidth, '.');
  std::fprintf(terminal_, "\r\033[K[%s] loading weights, %d%%", bar.c_str(), 100 * done / total);
  std::fflush(terminal_);
  shown_ = now;
  is_shown_ = true;
}

void LoadProgress::clear() {
  if (!is_shown_) return;
  std::fprintf(terminal_, "\r\033[K");
  std::fflush(terminal_);
  is_shown_ = false;
}

}  // namespace onepass
