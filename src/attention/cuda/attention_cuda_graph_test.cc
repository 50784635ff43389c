// What a CUDA graph has captured stays right when lengths and pages change beneath it.
#include "attention/cuda/testing/kernel_test.h"

namespace onepass {
namespace {

// Gives `spec` other lengths within the bounds of `first`: as many requests, no more rows in all, none longer.
void change_lengths(std::mt19937_64& rng, const AttentionSpec& first, AttentionSpec& spec) {
  int rows_left = 0, max_rows = 0;
  for (int rows : first.seqlens_q) {
    rows_left += rows;
    max_rows = std::max(max_rows, rows);
  }
  for (size_t b = 0; b < spec.seqlens_q.size(); ++b) {
    const int most = std::min(rows_left, max_rows);
    spec.seqlens_q[b] = rng() % 3 == 0 ? most : static_cast<int>(rng() % (most + 1));
    rows_left -= spec.seqlens_q[b];
    spec.seqlens_k[b] = rng() % 5 == 0 ? 0 : static_cast<int>(rng() % (spec.capacity_k + 1));
  }
  spec.seed = rng();
}

TEST_P(AttentionCudaTest, GraphServesChangedLengths) {
  std::mt19937_64 rng(seed() + 5);
  for (int i = 0; i < 10; ++i) {
    const StatusOr<AttentionSpec> drawn = supported_spec(rng, [](AttentionSpec& s) {
      // A graph may be captured with lengths of which some are 0 or tiny, as an engine does.
      s.capacity_k = 1200;
      for (int& keys : s.seqlens_k) keys = std::min(keys, s.capacity_k);
      return *std::max_element(s.seqlens_q.begin(), s.seqlens_q.end()) <= 64;
    });
    if (!drawn.ok()) GTEST_SKIP() << kernel().name << " takes no short queries";
    const AttentionSpec& spec = *drawn;
    SCOPED_TRACE("captured with " + to_string(spec));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(spec));
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
    ASSERT_OK_AND_ASSIGN(const CudaGraph graph, runner.capture(problem.params()));
    ASSERT_OK(graph.launch(runner.stream()));
    ASSERT_OK(runner.finish());
    expect_right(problem);
    AttentionSpec changed = spec;
    for (int replay = 0; replay < 4; ++replay) {
      change_lengths(rng, spec, changed);
      SCOPED_TRACE("replayed with " + to_string(changed));
      ASSERT_OK(problem.overwrite(changed));
      ASSERT_OK(graph.launch(runner.stream()));
      ASSERT_OK(runner.finish());
      expect_right(problem);
    }
  }
}

// As the layers of a model do: one plan for the lengths, then run() on other K, V, pages and queries.
TEST_P(AttentionCudaTest, OnePlanServesManyLayers) {
  std::mt19937_64 rng(seed() + 6);
  for (int i = 0; i < 10; ++i) {
    ASSERT_OK_AND_ASSIGN(const AttentionSpec spec, supported_spec(rng));
    SCOPED_TRACE(to_string(spec));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(spec));
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
    ASSERT_OK(runner.plan(problem.params()));
    AttentionSpec layer_spec = spec;
    for (int layer = 0; layer < 3; ++layer) {
      layer_spec.seed = rng();
      ASSERT_OK_AND_ASSIGN(DeviceProblem layer_problem, DeviceProblem::make(layer_spec));
      ASSERT_OK(runner.run(layer_problem.params()));
      ASSERT_OK(runner.finish());
      expect_right(layer_problem);
    }
  }
}

}  // namespace
}  // namespace onepass
