// A step that the device fails to compute ends the engine: every request gets the error, and what it was given before
// stands. The attention backend is a double (failing_attention.cc) that breaks down after a number of calls.
#include <cstdlib>

#include "scheduler/test_server.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

constexpr int kRequests = 7, kNewTokens = 40;

class DeviceFailureTest : public testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    testing::GTEST_FLAG(death_test_style) = "threadsafe";  // each in a process that has not used a GPU yet
    ::unsetenv("ONEPASS_TEST_FAILURE");
    if (GetParam() != DeviceKind::kCuda) return;
    const StatusOr<GpuInfo> gpu = query_gpu(0);
    if (!gpu.ok()) GTEST_SKIP() << gpu.status();
    if (!gpu->usable) GTEST_SKIP() << "no code for " << gpu->name;
  }
  void TearDown() override { ::unsetenv("ONEPASS_TEST_FAILURE"); }

  // A replayed step calls no backend.
  static ModelRunnerOptions options() {
    return {.device = {.kind = GetParam()}, .page_size = 16, .max_requests = 3, .kv_tokens = 512, .cuda_graphs = false};
  }

  static std::unique_ptr<Server> serve(const std::string& failure) {
    if (!failure.empty()) ::setenv("ONEPASS_TEST_FAILURE", failure.c_str(), 1);
    auto server = std::make_unique<Server>(options());
    ::unsetenv("ONEPASS_TEST_FAILURE");
    return server;
  }

  // More requests than run at once; some wait when the device fails.
  static std::vector<GenerateResult> ask(Server& server) {
    std::mt19937 random(5);
    Collector collector;
    size_t submitted = 0;
    std::vector<GenerateResult> results(kRequests);
    for (int i = 0; i < kRequests; ++i) {
      const auto id =
          server.scheduler->submit(request(random_tokens(random, 10 + 9 * i), kNewTokens, 0.8f), collector.callback(i));
      if (id.ok()) {
        ++submitted;
      } else {  // it has failed already
        EXPECT_EQ(id.status(), server.scheduler->health());
        collector.callback(i)({.finish_reason = FinishReason::kError, .status = id.status(), .is_last = true});
      }
    }
    collector.wait_for(kRequests);
    for (int i = 0; i < kRequests; ++i) results[i] = collector.result(i);
    EXPECT_GE(submitted, 1u);
    return results;
  }

  // All end with the one error, in one line, and what they have is what they would have got.
  static void expect_failed(Server& server, const std::vector<GenerateResult>& results, absl::string_view what,
                            const std::vector<GenerateResult>& sound) {
    const Status health = server.scheduler->health();
    EXPECT_EQ(health.message().find('\n'), absl::string_view::npos);
    EXPECT_EQ(health.message().substr(0, 23), "the engine has failed: ") << health;
    EXPECT_NE(health.message().find(what), absl::string_view::npos) << health;
    for (int i = 0; i < kRequests; ++i) {
      const std::vector<int32_t>& tokens = results[i].tokens;
      if (results[i].finish_reason == FinishReason::kLength) {  // before the device failed
        EXPECT_EQ(tokens, sound[i].tokens);
        continue;
      }
      EXPECT_EQ(results[i].finish_reason, FinishReason::kError) << i;
      EXPECT_EQ(results[i].status, health) << i;
      ASSERT_LE(tokens.size(), sound[i].tokens.size());
      EXPECT_EQ(tokens, std::vector(sound[i].tokens.begin(), sound[i].tokens.begin() + std::ssize(tokens))) << i;
    }
    EXPECT_NE(results.back().finish_reason, FinishReason::kLength);
    EXPECT_EQ(server.scheduler->submit(request({1, 2}, 2), [](const GenerateOutput&) {}).status(), health);
    EXPECT_TRUE(server.scheduler->stop().ok());
  }
};

INSTANTIATE_TEST_SUITE_P(Devices, DeviceFailureTest, testing::Values(DeviceKind::kCpu, DeviceKind::kCuda),
                         [](const auto& param_info) { return param_info.param == DeviceKind::kCuda ? "Cuda" : "Cpu"; });

TEST_P(DeviceFailureTest, AStepThatCannotBeLaunchedEndsEveryRequestWithTheError) {
  const std::vector<GenerateResult> sound = ask(*serve(""));
  const int layers = serve("")->runner->config().num_layers;
  // In the first step, in the middle of a step, while some decode, when some have ended.
  for (const int calls : {1, layers + 1, 9 * layers, 60 * layers + 1}) {
    SCOPED_TRACE(testing::Message() << "after " << calls << " calls");
    const auto server = serve("error:" + std::to_string(calls));
    const std::vector<GenerateResult> results = ask(*server);
    expect_failed(*server, results, "attention: the device has failed", sound);
    size_t tokens = 0;
    for (const GenerateResult& result : results) tokens += result.tokens.size();
    EXPECT_LE(tokens, static_cast<size_t>(3 * (calls / layers)));  // of steps that were computed whole, three each
    EXPECT_GE(tokens, static_cast<size_t>(std::max(0, calls / layers - 3)));
  }
}

// The launches succeed, and the GPU's own error comes with the step's results. The process's GPU is gone with it.
TEST_P(DeviceFailureTest, AFaultOnTheGpuEndsEveryRequestWithTheError) {
  if (GetParam() != DeviceKind::kCuda) GTEST_SKIP() << "a fault on the CPU ends the process";
  const auto fails_well = [] {
    const std::vector<GenerateResult> sound = ask(*serve(""));
    const auto server = serve("fault:37");
    expect_failed(*server, ask(*server), "cudaErrorIllegalAddress", sound);
    std::exit(testing::Test::HasFailure() ? 1 : 0);
  };
  EXPECT_EXIT(fails_well(), testing::ExitedWithCode(0), "the engine has failed");
}

}  // namespace
}  // namespace onepass
