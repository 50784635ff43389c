// Devices as a user meets them: what is refused, with a GPU or without, and what is shown while a model is loaded.
#include <pty.h>

#include <nlohmann/json.hpp>

#include "command_line.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

namespace fs = std::filesystem;

// Those that run a model; --model and --device are still to come.
std::vector<std::string> model_commands() {
  return {"generate --prompt x",
          "chat",
          "logits --input-ids 1 --output never",
          "perplexity --file " + (source_dir() / "LICENSE").string(),
          "bench latency",
          "bench throughput"};
}

class DeviceCommandTest : public CommandLineTest {
 protected:
  const std::string model_ = bundled_model("shakespeare-1m");
};

// An option that the chosen device would ignore is refused, wherever a model is run.
TEST_F(DeviceCommandTest, OptionsOfTheOtherDeviceExitWithTwo) {
  for (const std::string& command : model_commands()) {
    for (const auto& [option, device, other] :
         {std::tuple("--mem-fraction 0.5", "cuda", "cpu"), std::tuple("--mem-fraction 0.9", "cuda", "cpu"),
          std::tuple("--disable-cuda-graph", "cuda", "cpu"), std::tuple("--disable-layer-stack", "cuda", "cpu"),
          std::tuple("--plan-file auto", "cuda", "cpu"), std::tuple("--plan-file x", "cuda", "cpu"),
          std::tuple("--isa auto", "cpu", "cuda:3"), std::tuple("--isa avx2", "cpu", "cuda:0")}) {
      const std::string name = std::string(option).substr(0, std::string_view(option).find(' '));
      expect_error(str_cat(command, " --model /nonexistent --device ", other, " ", option),
                   str_cat(name, ": expected --device ", device, ", found ", other), 2);
    }
  }
  // Of those that serve many requests.
  expect_error("bench throughput --model /nonexistent --device cuda --kv-memory-fraction 0.5",
               "--kv-memory-fraction: expected --device cpu, found cuda:0", 2);
  expect_error("generate --model /nonexistent --prompts x --device cuda --kv-memory-fraction 0.5",
               "--kv-memory-fraction: expected --device cpu, found cuda:0", 2);
  // Without --device it is the CPU.
  expect_error("generate --model /nonexistent --prompt x --mem-fraction 0.5",
               "--mem-fraction: expected --device cuda, found cpu", 2);
}

// Whether there are GPUs or not, there is no hundredth.
TEST_F(DeviceCommandTest, AGpuThatIsNotThereExitsWithOne) {
  const StatusOr<int> count = count_gpus();
  const std::string expected = count.ok() ? "GPU 99: expected 0 to " : std::string(count.status().message());
  for (const std::string& command : model_commands()) {
    expect_error(str_cat(command, " --model ", model_, " --device cuda:99"), expected, 1);
  }
}

TEST_F(DeviceCommandTest, WithoutAGpuEveryCommandThatNeedsOneExitsWithOne) {
  const StatusOr<int> count = count_gpus();
  if (count.ok()) GTEST_SKIP() << "there is a GPU";
  const std::string expected(count.status().message());
  for (const std::string& command : model_commands()) {
    expect_error(str_cat(command, " --model ", model_, " --device cuda"), expected, 1);
  }
  if (query_cuda().compiled) {
    expect_error("bench attention --device cuda", expected, 1);
    expect_error("bench linear --device cuda", expected, 1);
  }
}

#ifdef ONEPASS_OLD_DRIVER
TEST_F(DeviceCommandTest, ADriverThatIsTooOldExitsWithOne) {
  const int needed = query_cuda().runtime_version;
  const std::string expected = str_cat("NVIDIA driver: expected one for CUDA ", needed / 1000, ".", needed % 1000 / 10,
                                       ", found one for CUDA 12.4");
  ASSERT_EQ(::setenv("LD_LIBRARY_PATH", ONEPASS_OLD_DRIVER, 1), 0);
  for (const std::string& command : model_commands()) {
    expect_error(str_cat(command, " --model ", model_, " --device cuda"), "device cuda:0: " + expected, 1);
  }
  const CommandResult devices = run("devices");
  ::unsetenv("LD_LIBRARY_PATH");
  EXPECT_EQ(devices.exit_status, 0);
  EXPECT_NE(devices.out.find("none: " + expected + "\n"), std::string::npos) << devices.out;
}
#endif

// Random weights that take a thread a second show how far they are, to a person alone.
TEST_F(DeviceCommandTest, LoadingShowsProgressOnATerminal) {
  const fs::path model = dir_ / "slow";
  fs::create_directories(model);
  nlohmann::json config = nlohmann::json::parse(read_file(fs::path(model_) / "config.json"));
  config["num_hidden_layers"] = 8;
  config["hidden_size"] = 1024;
  config["intermediate_size"] = 6000;
  write_file(model / "config.json", config.dump());
  const std::string command =
      "bench latency --dummy-weights --threads 1 --iterations 1 --input-len 1 --output-len 1 --model " + model.string();
  const CommandResult piped = run(command);
  EXPECT_EQ(piped.exit_status, 0) << piped.err;
  EXPECT_EQ(piped.err.find("loading weights"), std::string::npos) << piped.err;

  int controller = -1, terminal = -1;
  char name[128];
  ASSERT_EQ(::openpty(&controller, &terminal, name, nullptr, nullptr), 0);
  EXPECT_EQ(run(command + " 2>" + name).exit_status, 0);
  std::string shown(8192, '\0');
  const ssize_t length = ::read(controller, shown.data(), shown.size());
  shown.resize(std::max<ssize_t>(0, length));
  ::close(terminal);
  ::close(controller);
  const std::string clear = "\r\033[K", line = clear + "[";
  EXPECT_EQ(shown.rfind(line, 0), 0u) << shown;
  EXPECT_NE(shown.find("] loading weights, "), std::string::npos) << shown;
  EXPECT_TRUE(shown.ends_with("%" + clear)) << shown;  // nothing is left of it
}

}  // namespace
}  // namespace onepass
