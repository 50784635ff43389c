// Runs the program as a user does: through the shell, with its exit status, stdout and stderr.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "base/source_dir.h"

namespace onepass {

struct CommandResult {
  int exit_status = -1;
  std::string out;
  std::string err;
};

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A test with a folder of its own, which is removed in the end.
class CommandLineTest : public testing::Test {
 protected:
  CommandLineTest()
      : dir_(std::filesystem::path(testing::TempDir()) / ("onepass_cli_test_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(dir_);
  }
  ~CommandLineTest() override { std::filesystem::remove_all(dir_); }

  // `arguments` go through the shell: quote what needs it.
  CommandResult run(const std::string& arguments, const std::string& input = "") {
    write_file(dir_ / "in", input);
    const std::string command = std::string(ONEPASS_BINARY) + " <" + (dir_ / "in").string() + " >" +
                                (dir_ / "out").string() + " 2>" + (dir_ / "err").string() + " " + arguments;
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(dir_ / "out"), read_file(dir_ / "err")};
  }

  // Fails with status 1 (or another), nothing on stdout, and one line on stderr that begins with the program's name and
  // holds `expected`.
  void expect_error(const std::string& arguments, const std::string& expected, int exit_status = 1) {
    const CommandResult result = run(arguments);
    EXPECT_EQ(result.exit_status, exit_status) << arguments << "\n" << result.err;
    EXPECT_EQ(result.out.substr(0, 200), "") << arguments;
    EXPECT_NE(result.err.find(expected), std::string::npos)
        << arguments << "\nexpected: " << expected << "\nfound: " << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(result.err.rfind("onepass: ", 0), 0u) << result.err;
    EXPECT_LT(result.err.size(), 600u) << result.err;
  }

  static std::string bundled_model(const std::string& name) { return (source_dir() / "models" / name).string(); }

  const std::filesystem::path dir_;
};

}  // namespace onepass
