// Where the order of all sums is fixed, results have the same bits.
#include "attention/cuda/testing/kernel_test.h"

namespace onepass {
namespace {

constexpr int kIterations = 20;

bool fix_splits(AttentionSpec& spec) {
  spec.num_splits = 0;
  if (spec.split_size == 0) spec.split_size = 128;
  return true;
}

// Query rows of one request as a problem of its own.
struct Part {
  int request = 0;
  int first = 0;  // of the request's rows
  int rows = 0;
  int keys = 0;  // that the request has at the last of the rows
};

// Runs a kernel on parts of a problem, one after the other, each with a plan and scratch of its own. Their results lie
// in problem's output, and the LSE in `lse` ([num_heads, total_q]).
Status attend_parts(const CudaAttentionKernel& kernel, const GpuInfo& gpu, const DeviceProblem& problem,
                    std::span<const Part> parts, std::vector<float>& lse) {
  const AttentionParams& p = problem.params();
  std::vector<int> first_rows = {0};
  for (const int rows : problem.spec().seqlens_q) first_rows.push_back(first_rows.back() + rows);
  for (const Part& part : parts) {
    const int64_t first_row = first_rows[part.request] + part.first;
    const int32_t numbers[] = {0, part.rows, part.keys};
    ONEPASS_ASSIGN_OR_RETURN(const CudaBuffer lengths, CudaBuffer::copy_of(std::as_bytes(std::span(numbers))));
    std::vector<float> part_lse(int64_t{part.rows} * p.num_heads);
    ONEPASS_ASSIGN_OR_RETURN(const CudaBuffer device_lse, CudaBuffer::allocate(part_lse.size() * sizeof(float)));
    AttentionParams alone = p;
    alone.q =
        static_cast<const std::byte*>(p.q) + first_row * p.q_row_stride * static_cast<int64_t>(size_of(p.q_dtype));
    alone.out =
        static_cast<std::byte*>(p.out) + first_row * p.out_row_stride * static_cast<int64_t>(size_of(p.out_dtype));
    alone.softmax_lse = device_lse.as<float>();
    alone.batch = 1;
    alone.total_q = alone.max_seqlen_q = part.rows;
    alone.cu_seqlens_q = lengths.as<int32_t>();
    alone.cache_seqlens = lengths.as<int32_t>() + 2;
    if (p.cu_seqlens_k != nullptr) alone.cu_seqlens_k += part.request;
    if (p.page_table != nullptr) alone.page_table += part.request * p.page_table_stride;
    ONEPASS_ASSIGN_OR_RETURN(const KernelRunner runner, KernelRunner::make(kernel, gpu, alone));
    ONEPASS_RETURN_IF_ERROR(runner.attend(alone));
    ONEPASS_RETURN_IF_ERROR(device_lse.download(std::as_writable_bytes(std::span(part_lse))));
    for (int64_t head = 0; head < p.num_heads; ++head) {
      std::copy_n(part_lse.begin() + head * part.rows, part.rows, lse.begin() + head * p.total_q + first_row);
    }
  }
  return ok_status();
}

// Whatever else happens on the GPU.
TEST_P(AttentionCudaTest, FixedSplitsGiveTheSameBits) {
  std::mt19937_64 rng(seed() + 2);
  for (int i = 0; i < kIterations; ++i) {
    const StatusOr<AttentionSpec> drawn = supported_spec(rng, fix_splits);
    if (!drawn.ok()) GTEST_SKIP() << kernel().name << " takes no split_size";
    SCOPED_TRACE(to_string(*drawn));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(*drawn));
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

TEST_P(AttentionCudaTest, FixedSplitsDoNotDependOnTheBatch) {
  std::mt19937_64 rng(seed() + 3);
  for (int i = 0; i < kIterations; ++i) {
    const StatusOr<AttentionSpec> drawn = supported_spec(rng, [](AttentionSpec& s) {
      return fix_splits(s) && s.seqlens_q.size() > 1 && s.seqlens_q.size() < 5 && !s.descales;
    });
    if (!drawn.ok()) GTEST_SKIP() << kernel().name << " takes no split_size";
    SCOPED_TRACE(to_string(*drawn));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(*drawn));
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
    ASSERT_OK(runner.attend(problem.params()));
    ASSERT_OK_AND_ASSIGN(const AttentionResult whole, problem.result());

    ASSERT_OK(problem.clear_output());
    std::vector<Part> requests(drawn->seqlens_q.size());
    for (int b = 0; b < static_cast<int>(requests.size()); ++b) {
      requests[b] = {.request = b, .first = 0, .rows = drawn->seqlens_q[b], .keys = drawn->seqlens_k[b]};
    }
    std::vector<float> lse(whole.lse.size());
    ASSERT_OK(attend_parts(kernel(), gpu(), problem, requests, lse));
    ASSERT_OK_AND_ASSIGN(const AttentionResult alone, problem.result());
    EXPECT_EQ(alone.out, whole.out);
    EXPECT_EQ(lse, whole.lse);
  }
}

// With batch_invariant not even on the chunk of the prompt that a row is computed in.
TEST_P(AttentionCudaTest, InvariantRowsDoNotDependOnTheChunk) {
  std::mt19937_64 rng(seed() + 7);
  for (int i = 0; i < kIterations; ++i) {
    const StatusOr<AttentionSpec> drawn = supported_spec(rng, [](AttentionSpec& s) {
      s.batch_invariant = s.causal = true;
      return fix_splits(s) && s.seqlens_q.size() < 4 && s.seqlens_q[0] > 20 && !s.descales;
    });
    if (!drawn.ok()) GTEST_SKIP() << kernel().name << " takes no batch_invariant";
    SCOPED_TRACE(to_string(*drawn));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(*drawn));
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
    ASSERT_OK(runner.attend(problem.params()));
    expect_right(problem);
    ASSERT_OK_AND_ASSIGN(const AttentionResult whole, problem.result());

    ASSERT_OK(problem.clear_output());
    std::vector<Part> chunks;
    for (int b = 0; b < static_cast<int>(drawn->seqlens_q.size()); ++b) {
      const int rows = drawn->seqlens_q[b], keys = drawn->seqlens_k[b];
      for (int first = 0; first < rows;) {
        const int count = std::min(rows - first, 1 + static_cast<int>(rng() % (rows / 2 + 1)));
        // Causal: the keys behind the chunk's last row do not exist yet.
        chunks.push_back(
            {.request = b, .first = first, .rows = count, .keys = std::max(0, keys - rows + first + count)});
        first += count;
      }
    }
    std::vector<float> lse(whole.lse.size());
    ASSERT_OK(attend_parts(kernel(), gpu(), problem, chunks, lse));
    ASSERT_OK_AND_ASSIGN(const AttentionResult in_chunks, problem.result());
    EXPECT_EQ(in_chunks.out, whole.out);
    EXPECT_EQ(lse, whole.lse);
  }
}

}  // namespace
}  // namespace onepass
