#include "base/mapped_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

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

}  // namespace
}  // namespace onepass
