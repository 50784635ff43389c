// Every kernel against the float64 reference, on random problems that it takes.
#include "attention/cuda/testing/kernel_test.h"

namespace onepass {
namespace {

constexpr int kDefaultIterations = 200;

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionCudaTest, testing::ValuesIn(kernels_to_test()), [](const auto& kernel) {
  std::string name(kernel.param->name);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(AttentionCuda, HasTheKernelToTest) {
  const char* name = std::getenv("ONEPASS_TEST_KERNEL");
  EXPECT_FALSE(kernels_to_test().empty())
      << "ONEPASS_TEST_KERNEL: no kernel is called \"" << (name ? name : "") << "\"";
}

TEST_P(AttentionCudaTest, MatchesTheReference) {
  const auto iterations = environment("ONEPASS_TEST_ITERATIONS", kDefaultIterations);
  std::mt19937_64 rng(environment("ONEPASS_TEST_SEED", 1));
  for (int64_t i = 0; i < iterations; ++i) {
    ASSERT_OK_AND_ASSIGN(const AttentionSpec spec, supported_spec(rng));
    SCOPED_TRACE(to_string(spec));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(spec));
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
    ASSERT_OK(runner.attend(problem.params()));
    expect_right(problem);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionCudaTest, RunsTwiceAfterOnePlan) {
  std::mt19937_64 rng(environment("ONEPASS_TEST_SEED", 1) + 1);
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK_AND_ASSIGN(const AttentionSpec spec, supported_spec(rng));
    SCOPED_TRACE(to_string(spec));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(spec));
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
    ASSERT_OK(runner.attend(problem.params()));
    ASSERT_OK(problem.clear_output());
    ASSERT_OK(runner.run(problem.params()));
    ASSERT_OK(runner.finish());
    expect_right(problem);
  }
}

// With split_size the order of all sums is fixed, whatever else happens on the GPU.
TEST_P(AttentionCudaTest, FixedSplitsGiveTheSameBits) {
  std::mt19937_64 rng(environment("ONEPASS_TEST_SEED", 1) + 2);
  for (int i = 0; i < 20; ++i) {
    const StatusOr<AttentionSpec> drawn = supported_spec(rng, [](AttentionSpec& s) {
      s.num_splits = 0;
      if (s.split_size == 0) s.split_size = 128;
      return true;
    });
    if (!drawn.ok()) GTEST_SKIP() << kernel().name << " takes no split_size";
    const AttentionSpec& spec = *drawn;
    SCOPED_TRACE(to_string(spec));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(spec));
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
    ASSERT_OK(runner.attend(problem.params()));
    ASSERT_OK_AND_ASSIGN(const AttentionResult first, problem.result());
    ASSERT_OK(problem.clear_output());
    ASSERT_OK(runner.attend(problem.params()));
    ASSERT_OK_AND_ASSIGN(const AttentionResult second, problem.result());
    EXPECT_EQ(first.out, second.out);
    EXPECT_EQ(first.lse, second.lse);
  }
}

// Each request of a batch alone: the same bits as in the batch when split_size is fixed.
TEST_P(AttentionCudaTest, FixedSplitsDoNotDependOnTheBatch) {
  std::mt19937_64 rng(environment("ONEPASS_TEST_SEED", 1) + 3);
  for (int i = 0; i < 20; ++i) {
    const StatusOr<AttentionSpec> drawn = supported_spec(rng, [](AttentionSpec& s) {
      s.num_splits = 0;
      s.padding = 0;
      if (s.split_size == 0) s.split_size = 128;
      return s.seqlens_q.size() > 1 && s.seqlens_q.size() < 5 && !s.descales;
    });
    if (!drawn.ok()) GTEST_SKIP() << kernel().name << " takes no split_size";
    const AttentionSpec& spec = *drawn;
    SCOPED_TRACE(to_string(spec));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(spec));
    const AttentionParams& p = problem.params();
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), p));
    ASSERT_OK(runner.attend(p));
    ASSERT_OK_AND_ASSIGN(const AttentionResult whole, problem.result());

    ASSERT_OK(problem.clear_output());
    int64_t first_row = 0;
    std::vector<float> lse(whole.lse.size());
    for (int b = 0; b < p.batch; ++b) {
      const int rows = spec.seqlens_q[b];
      const int32_t cu_seqlens_q[] = {0, rows};
      ASSERT_OK_AND_ASSIGN(const CudaBuffer lengths, CudaBuffer::copy_of(std::as_bytes(std::span(cu_seqlens_q))));
      ASSERT_OK_AND_ASSIGN(const CudaBuffer lse_alone,
                           CudaBuffer::allocate(int64_t{rows} * p.num_heads * static_cast<int64_t>(sizeof(float))));
      AttentionParams alone = p;
      const auto q_bytes = static_cast<int64_t>(size_of(p.q_dtype)),
                 out_bytes = static_cast<int64_t>(size_of(p.out_dtype));
      alone.q = static_cast<const std::byte*>(p.q) + first_row * p.q_row_stride * q_bytes;
      alone.out = static_cast<std::byte*>(p.out) + first_row * p.out_row_stride * out_bytes;
      alone.softmax_lse = lse_alone.as<float>();
      alone.batch = 1;
      alone.total_q = alone.max_seqlen_q = rows;
      alone.cu_seqlens_q = lengths.as<int32_t>();
      alone.cache_seqlens += b;
      if (p.cu_seqlens_k != nullptr) alone.cu_seqlens_k += b;
      if (p.page_table != nullptr) alone.page_table += b * p.page_table_stride;
      ASSERT_OK_AND_ASSIGN(const KernelRunner runner_alone, KernelRunner::make(kernel(), gpu(), alone));
      ASSERT_OK(runner_alone.attend(alone));
      std::vector<float> values(int64_t{rows} * p.num_heads);
      ASSERT_OK(lse_alone.download(std::as_writable_bytes(std::span(values))));
      for (int64_t head = 0; head < p.num_heads; ++head) {
        for (int64_t row = 0; row < rows; ++row) lse[head * p.total_q + first_row + row] = values[head * rows + row];
      }
      first_row += rows;
    }
    ASSERT_OK_AND_ASSIGN(const AttentionResult parts, problem.result());
    EXPECT_EQ(parts.out, whole.out);
    EXPECT_EQ(lse, whole.lse);
  }
}

// K and V beyond 2^31 elements (4 GiB each).
TEST_P(AttentionCudaTest, OffsetsHave64Bits) {
  if (gpu().memory_bytes < int64_t{20} << 30) GTEST_SKIP() << "needs 20 GiB of device memory";
  std::mt19937_64 rng(environment("ONEPASS_TEST_SEED", 1) + 4);
  for (const bool paged : {true, false}) {
    const StatusOr<AttentionSpec> drawn = supported_spec(rng, [paged](const AttentionSpec& s) {
      return (s.page_size > 0) == paged && s.kv_dtype != DType::kF32 && s.seqlens_q[0] > 0 && s.seqlens_k[0] > 128 &&
             s.head_dim == s.head_dim_v;
    });
    if (!drawn.ok()) continue;  // paged or contiguous alone
    const AttentionSpec& spec = *drawn;
    SCOPED_TRACE(to_string(spec));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(spec, (int64_t{1} << 31) + 12345));
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
    ASSERT_OK(runner.attend(problem.params()));
    expect_right(problem);
  }
}

}  // namespace
}  // namespace onepass
