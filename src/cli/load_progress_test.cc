#include "cli/load_progress.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace onepass {
namespace {

using std::chrono::milliseconds;

// What is written since the last call.
class Terminal {
 public:
  Terminal() : file_(::open_memstream(&text_, &size_)) {}
  ~Terminal() {
    std::fclose(file_);
    std::free(text_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  std::FILE* file() const { return file_; }
  std::string take() {
    std::fflush(file_);
    std::string fresh(text_ + taken_, size_ - taken_);
    taken_ = size_;
    return fresh;
  }

 private:
  char* text_ = nullptr;
  size_t size_ = 0, taken_ = 0;
  std::FILE* file_;
};

TEST(LoadProgressTest, ShowsALineWhenItTakesAWhileAndClearsIt) {
  Terminal terminal;
  const auto start = LoadProgress::Clock::now();
  LoadProgress progress(terminal.file(), start);
  progress.show(1, 8, start + milliseconds(299));
  EXPECT_EQ(terminal.take(), "");
  progress.show(2, 8, start + milliseconds(300));
  EXPECT_EQ(terminal.take(), "\r\033[K[######..................] loading weights, 25%");
  progress.show(3, 8, start + milliseconds(399));
  EXPECT_EQ(terminal.take(), "") << "more than ten times a second";
  progress.show(4, 8, start + milliseconds(400));
  EXPECT_EQ(terminal.take(), "\r\033[K[############............] loading weights, 50%");
  progress.show(8, 8, start + milliseconds(401));
  EXPECT_EQ(terminal.take(), "\r\033[K");
}

TEST(LoadProgressTest, SaysNothingWhereLoadingIsQuick) {
  Terminal terminal;
  {
    const auto start = LoadProgress::Clock::now();
    LoadProgress progress(terminal.file(), start);
    for (int done = 1; done <= 8; ++done) progress.show(done, 8, start + milliseconds(10 * done));
  }
  EXPECT_EQ(terminal.take(), "");
}

// An error takes its place.
TEST(LoadProgressTest, LeavesNoLineBehind) {
  Terminal terminal;
  {
    const auto start = LoadProgress::Clock::now();
    LoadProgress progress(terminal.file(), start);
    progress.show(1, 8, start + milliseconds(500));
    EXPECT_NE(terminal.take(), "");
  }
  EXPECT_EQ(terminal.take(), "\r\033[K");
}

}  // namespace
}  // namespace onepass
