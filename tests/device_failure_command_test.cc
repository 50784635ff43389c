// What a user sees of a device that fails: the program with the double of failing_attention.cc in it.
#include <map>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "command_line.h"

namespace onepass {
namespace {

class DeviceFailureCommandTest : public CommandLineTest {
 protected:
  void SetUp() override { ::setenv("ONEPASS_TEST_FAILURE", "error:41", 1); }
  void TearDown() override { ::unsetenv("ONEPASS_TEST_FAILURE"); }

  const std::string model_ = bundled_model("shakespeare-1m");
};

TEST_F(DeviceFailureCommandTest, EveryCommandExitsWithTheErrorInItsLastLine) {
  for (const std::string& command :
       {str_cat("generate --prompt ROMEO: --greedy --max-tokens 100 --model ", model_),
        str_cat("bench throughput --num-prompts 4 --random-input-len 8 --random-output-len 100 --model ", model_),
        str_cat("bench latency --input-len 8 --output-len 100 --model ", model_)}) {
    const CommandResult result = run(command);
    EXPECT_EQ(result.exit_status, 1) << command << "\n" << result.err;
    const size_t last = result.err.rfind('\n', result.err.size() - 2);
    const std::string line = result.err.substr(last == std::string::npos ? 0 : last + 1);
    EXPECT_EQ(line.rfind("onepass: ", 0), 0u) << result.err;
    EXPECT_NE(line.find("attention: the device has failed"), std::string::npos) << result.err;
    EXPECT_EQ(result.out.find("throughput"), std::string::npos) << result.out;
  }
}

// Lines that the device has not computed are not written off: the same command computes them when it is well again.
TEST_F(DeviceFailureCommandTest, TheLinesOfABatchAreComputedLater) {
  std::string prompts;
  for (int i = 0; i < 12; ++i) {
    prompts += nlohmann::json{{"prompt", "ROMEO:"}, {"max_tokens", 5 + 7 * i}, {"seed", i}}.dump() + "\n";
  }
  write_file(dir_ / "prompts.jsonl", prompts);
  const auto command = [&](const std::string& output) {
    return str_cat("generate --deterministic --max-running-requests 2 --model ", model_, " --prompts ",
                   (dir_ / "prompts.jsonl").string(), " --output ", (dir_ / output).string());
  };
  ::setenv("ONEPASS_TEST_FAILURE", "error:201", 1);
  const CommandResult failed = run(command("output.jsonl"));
  EXPECT_EQ(failed.exit_status, 1);
  EXPECT_NE(failed.err.find("the engine has failed: attention: the device has failed"), std::string::npos)
      << failed.err;
  const std::string before = read_file(dir_ / "output.jsonl");
  EXPECT_EQ(before.find("error"), std::string::npos) << before;
  const auto written = std::count(before.begin(), before.end(), '\n');
  EXPECT_GE(written, 1);
  EXPECT_LT(written, 12);

  ::unsetenv("ONEPASS_TEST_FAILURE");
  EXPECT_EQ(run(command("output.jsonl")).exit_status, 0);
  EXPECT_EQ(run(command("whole.jsonl")).exit_status, 0);
  const auto texts = [&](const std::string& path) {
    std::map<int, std::string> by_line;
    std::istringstream file(read_file(dir_ / path));
    for (std::string line; std::getline(file, line);) {
      const nlohmann::json value = nlohmann::json::parse(line);
      by_line[value.at("line").get<int>()] = value.at("choices").at(0).at("text").get<std::string>();
    }
    return by_line;
  };
  EXPECT_EQ(texts("whole.jsonl").size(), 12u);
  EXPECT_EQ(texts("output.jsonl"), texts("whole.jsonl"));
}

}  // namespace
}  // namespace onepass
