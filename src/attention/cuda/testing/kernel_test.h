// What the tests of all CUDA kernels share: the GPU, the kernels to test, problems that a kernel takes.
//
// Environment: ONEPASS_TEST_KERNEL names the one kernel to test; ONEPASS_TEST_SEED and ONEPASS_TEST_ITERATIONS say
// which random problems and how many; tests fail where these are no such numbers.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "attention/cuda/flash_attention_cuda.h"
#include "attention/cuda/testing/device_problem.h"
#include "attention/cuda/testing/environment.h"
#include "attention/cuda/testing/error_bound.h"
#include "attention/cuda/testing/kernel_runner.h"
#include "attention/cuda/testing/random_gpu_spec.h"
#include "base/thread_pool.h"

namespace onepass {

inline std::vector<const CudaAttentionKernel*> kernels_to_test() {
  const char* name = std::getenv("ONEPASS_TEST_KERNEL");
  std::vector<const CudaAttentionKernel*> kernels;
  for (const CudaAttentionKernel* kernel : cuda_attention_kernels()) {
    if (name == nullptr || kernel->name == name) kernels.push_back(kernel);
  }
  return kernels;
}

// The parameter's name in the tests' output.
inline void PrintTo(const CudaAttentionKernel* kernel, std::ostream* out) { *out << kernel->name; }

class AttentionCudaTest : public testing::TestWithParam<const CudaAttentionKernel*> {
 protected:
  void SetUp() override {
    // Before what skips: wrong numbers are told without a GPU too.
    const StatusOr<int64_t> seed = whole_number_from_environment("ONEPASS_TEST_SEED", 1, 0);
    const StatusOr<int64_t> iterations = whole_number_from_environment("ONEPASS_TEST_ITERATIONS", 200, 1);
    ASSERT_TRUE(seed.ok()) << seed.status().message();
    ASSERT_TRUE(iterations.ok()) << iterations.status().message();
    seed_ = static_cast<uint64_t>(*seed), iterations_ = *iterations;
    if (!cuda_.problem.empty()) GTEST_SKIP() << "no GPU to test on: " << cuda_.problem;
    if (!gpu().usable) GTEST_SKIP() << "this binary has no code for " << gpu().name;
  }

  static const CudaAttentionKernel& kernel() { return *GetParam(); }
  const GpuInfo& gpu() const { return cuda_.gpus.front(); }
  uint64_t seed() const { return seed_; }
  int64_t iterations() const { return iterations_; }
  Stream host() { return {.pool = &pool_}; }

  // A random problem that the kernel takes, after `change` (which may refuse one); an error after 2,000 attempts.
  StatusOr<AttentionSpec> supported_spec(
      std::mt19937_64& rng,
      const std::function<bool(AttentionSpec&)>& change = [](AttentionSpec&) { return true; }) const {
    for (int attempt = 0; attempt < 2000; ++attempt) {
      AttentionSpec spec = random_gpu_spec(rng);
      if (!change(spec)) continue;
      const Status status = kernel_supports(kernel(), spec, gpu());
      if (status.ok()) return spec;
      EXPECT_FALSE(status.message().empty());
      EXPECT_EQ(status.message().find('\n'), std::string::npos) << status;
    }
    return not_found(kernel().name, " takes fewer than 1 in 2,000 problems");
  }

  // Checks what a kernel left in `problem` against the exact result.
  void expect_right(DeviceProblem& problem) {
    const AttentionResult exact = problem.host().run_reference(host());
    const ErrorBound bound = error_bound(problem.host(), exact, host());
    const StatusOr<AttentionResult> result = problem.result();
    ASSERT_TRUE(result.ok()) << result.status();
    const AttentionDifference difference = compare(*result, exact);
    EXPECT_LE(difference.max_out, bound.out) << difference.worst;
    EXPECT_LE(difference.max_lse, bound.lse) << difference.worst;
    EXPECT_TRUE(problem.padding_intact()) << "written outside of the rows of out and softmax_lse";
  }

  // The kernel on each of the problems that it takes, so many times after one plan; skips where that is none.
  void expect_right_of_those_taken(const std::vector<AttentionSpec>& specs, int runs = 1) {
    int taken = 0;
    for (const AttentionSpec& spec : specs) {
      if (!kernel_supports(kernel(), spec, gpu()).ok()) continue;
      ++taken;
      SCOPED_TRACE(to_string(spec));
      StatusOr<DeviceProblem> problem = DeviceProblem::make(spec);
      ASSERT_TRUE(problem.ok()) << problem.status();
      const StatusOr<KernelRunner> runner = KernelRunner::make(kernel(), gpu(), problem->params());
      ASSERT_TRUE(runner.ok()) << runner.status();
      Status done = runner->attend(problem->params());
      for (int run = 1; done.ok() && run < runs; ++run) {
        done = problem->clear_output();
        if (done.ok()) done = runner->run(problem->params());
        if (done.ok()) done = runner->finish();
      }
      ASSERT_TRUE(done.ok()) << done;
      expect_right(*problem);
      if (HasFatalFailure()) return;
    }
    if (taken == 0) GTEST_SKIP() << kernel().name << " takes none of them";
  }

 private:
  uint64_t seed_ = 1;
  int64_t iterations_ = 1;
  const CudaInfo cuda_ = query_cuda();
  ThreadPool pool_{available_processors()};
};

// ASSERT_OK_AND_ASSIGN(const DeviceProblem problem, DeviceProblem::make(spec));
#define ASSERT_OK(expression)                               \
  do {                                                      \
    const ::onepass::Status status_of_test_ = (expression); \
    ASSERT_TRUE(status_of_test_.ok()) << status_of_test_;   \
  } while (false)
#define ASSERT_OK_AND_ASSIGN(lhs, expression) \
  ASSERT_OK_AND_ASSIGN_INNER(ONEPASS_CONCAT(test_status_or_, __LINE__), lhs, expression)
#define ASSERT_OK_AND_ASSIGN_INNER(holder, lhs, expression) \
  auto holder = (expression);                               \
  ASSERT_TRUE(holder.ok()) << holder.status();              \
  lhs = std::move(holder).value()

}  // namespace onepass
