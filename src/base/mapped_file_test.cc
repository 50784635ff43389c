#include "base/mapped_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

namespace onepass {
namespace {

class MappedFileTest : public testing::Test {
 protected:
  MappedFileTest() : path_(testing::TempDir() + "onepass_mapped_file_test_" + std::to_string(::getpid())) {}
  ~MappedFileTest() override { std::remove(path_.c_str()); }
  void write(const std::string& text) { std::ofstream(path_, std::ios::binary) << text; }
  std::string path_;
};

TEST_F(MappedFileTest, ReadsBackWhatWasWrittenAlsoAfterRelease) {
  const std::string text(100000, 'x');
  write(text);
  auto file = MappedFile::open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  MappedFile moved = std::move(*file);
  moved.prefetch(5000, 1 << 30);
  moved.release(0, text.size());
  moved.release(200000, 1);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(moved.bytes().data()), moved.bytes().size()), text);
}

TEST_F(MappedFileTest, EmptyFileHasNoBytes) {
  write("");
  auto file = MappedFile::open(path_);
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(file->bytes().empty());
}

TEST_F(MappedFileTest, ErrorsNameThePath) {
  EXPECT_EQ(MappedFile::open("/nonexistent/file").status().message(), "/nonexistent/file: No such file or directory");
  EXPECT_FALSE(MappedFile::open("/tmp").ok());
  write("0123456789");
  EXPECT_FALSE(read_text_file(path_, 9).ok());
  EXPECT_EQ(*read_text_file(path_, 10), "0123456789");
}

// Where text is asked for a pipe will do; where a file is mapped it will not, nor is it waited for.
TEST_F(MappedFileTest, PipesAreReadToTheirEnd) {
  write("from a file");
  EXPECT_EQ(*read_text_input(path_), "from a file");
  std::remove(path_.c_str());
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_EQ(MappedFile::open(path_).status().message(), path_ + ": expected a regular file");
  const std::string text(200'000, 'x');
  std::thread writer([&] { write(text); });
  EXPECT_EQ(*read_text_input(path_), text);
  writer.join();
  EXPECT_EQ(read_text_input("/dev/zero", 1'000'000).status().message(),
            "/dev/zero: more than the 1000000 bytes expected of a text");
  EXPECT_EQ(*read_text_input("/dev/null"), "");
  EXPECT_EQ(read_text_input("/tmp").status().message(), "/tmp: expected a file or a pipe");
  EXPECT_EQ(read_text_input("/nonexistent/file").status().message(), "/nonexistent/file: No such file or directory");
}

}  // namespace
}  // namespace onepass
