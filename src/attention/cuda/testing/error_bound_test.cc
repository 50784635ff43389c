// The yardstick itself, on the host.
#include "attention/cuda/testing/error_bound.h"

#include <gtest/gtest.h>

#include "attention/cuda/testing/random_gpu_spec.h"
#include "base/thread_pool.h"

namespace onepass {
namespace {

TEST(ErrorBound, IsThatOfTheDType) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    SCOPED_TRACE(to_string(dtype));
    const AttentionProblem problem(
        {.seqlens_q = {70}, .seqlens_k = {130}, .q_dtype = dtype, .kv_dtype = dtype, .out_dtype = dtype});
    const ErrorBound bound = error_bound(problem, problem.run_reference());
    const double epsilon = dtype == DType::kF32 ? 1e-6 : dtype == DType::kF16 ? 1.0 / (1 << 11) : 1.0 / (1 << 8);
    EXPECT_GT(bound.out, epsilon);
    EXPECT_LT(bound.out, dtype == DType::kF32 ? 1e-4 : 12 * epsilon);
    EXPECT_LT(bound.lse, 3e-4);
  }
}

// Masks, sinks, descales and the rest as the reference has them: in float32 the straightforward computation is as good
// as exact.
TEST(ErrorBound, KnowsEveryOption) {
  ThreadPool pool(available_processors());
  std::mt19937_64 rng(1);
  for (int i = 0; i < 30; ++i) {
    AttentionSpec spec = random_gpu_spec(rng);
    spec.q_dtype = spec.kv_dtype = spec.out_dtype = DType::kF32;
    SCOPED_TRACE(to_string(spec));
    const AttentionProblem problem(spec);
    const AttentionDifference difference =
        compare(low_precision_attention(problem, {.pool = &pool}), problem.run_reference({.pool = &pool}));
    EXPECT_LT(difference.max_out, 2e-4) << difference.worst;
    EXPECT_LT(difference.max_lse, 2e-4) << difference.worst;
  }
}

}  // namespace
}  // namespace onepass
