#include "attention/reference/reference_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "attention/testing/attention_problem.h"

namespace onepass {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The formula of the paper with nothing done to it, on the problem's numbers before they were laid out in pages:
// exp(score) without the maximum subtracted, the mask as an interval of keys.
AttentionResult brute_force(const AttentionProblem& problem) {
  const AttentionSpec& spec = problem.spec();
  const AttentionParams& p = problem.params();
  AttentionResult result{.num_heads = spec.num_heads, .head_dim_v = spec.head_dim_v, .out = {}, .lse = {}};
  result.out.resize(int64_t{p.total_q} * spec.num_heads * spec.head_dim_v);
  result.lse.resize(int64_t{p.total_q} * spec.num_heads);
  for (int b = 0; b < p.batch; ++b) {
    for (int i = 0; i < spec.seqlens_q[b]; ++i) {
      for (int h = 0; h < spec.num_heads; ++h) {
        const int head_kv = h * spec.num_heads_kv / spec.num_heads;
        const int scale_at = b * spec.num_heads_kv + head_kv;
        const int position = spec.seqlens_k[b] - spec.seqlens_q[b] + i;
        int first = 0;
        int last = spec.seqlens_k[b] - 1;
        if (spec.causal) last = std::min(last, position);
        if (spec.window_left >= 0) first = std::max(first, position - spec.window_left);
        if (spec.window_right >= 0) last = std::min(last, position + spec.window_right);
        if (spec.attention_chunk > 0) {
          const int chunk = static_cast<int>(std::floor(static_cast<double>(position) / spec.attention_chunk));
          first = std::max(first, chunk * spec.attention_chunk);
          last = std::min(last, (chunk + 1) * spec.attention_chunk - 1);
        }
        long double sum = 0.0L;
        std::vector<long double> out(spec.head_dim_v, 0.0L);
        for (int j = first; j <= last; ++j) {
          long double score = 0.0L;
          for (int d = 0; d < spec.head_dim; ++d) {
            score += static_cast<long double>(problem.query(b, i, h, d)) * problem.key(b, j, head_kv, d);
          }
          score *= p.softmax_scale;
          if (spec.descales) score *= static_cast<long double>(p.q_descale[scale_at]) * p.k_descale[scale_at];
          if (spec.softcap > 0) score = spec.softcap * std::tanh(score / spec.softcap);
          const long double weight = std::exp(score);
          sum += weight;
          for (int d = 0; d < spec.head_dim_v; ++d) out[d] += weight * problem.value(b, j, head_kv, d);
        }
        const bool empty = first > last;
        if (spec.sinks) sum += std::exp(static_cast<long double>(p.sinks[h]));
        const int64_t row = p.cu_seqlens_q[b] + i;
        for (int d = 0; d < spec.head_dim_v; ++d) {
          const long double scale = spec.descales ? p.v_descale[scale_at] : 1.0L;
          result.out[(row * spec.num_heads + h) * spec.head_dim_v + d] =
              empty ? 0.0f : static_cast<float>(out[d] * scale / sum);
        }
        result.lse[int64_t{h} * p.total_q + row] = empty ? -kInfinity : static_cast<float>(std::log(sum));
      }
    }
  }
  return result;
}

// Half a unit in the last place of an output around 4, in the output's dtype.
double rounding_error(DType dtype) { return dtype == DType::kF32 ? 1e-6 : dtype == DType::kF16 ? 0x1p-9 : 0x1p-6; }

TEST(ReferenceAttention, AgreesWithTheFormulaOnRandomProblems) {
  std::mt19937_64 rng(20);
  constexpr int kHeadDims[] = {1, 7, 16, 33, 64};
  ThreadPool pool(2);
  for (int round = 0; round < 150; ++round) {
    AttentionSpec spec = random_attention_spec(rng, kHeadDims, 100);
    if (round % 3 == 0) spec.head_dim_v = spec.head_dim + 5;
    SCOPED_TRACE(to_string(spec));
    const AttentionProblem problem(spec);
    reference_attention(problem.params(), {.device = {}, .pool = &pool});
    const AttentionDifference difference = compare(problem.result(), brute_force(problem));
    EXPECT_LE(difference.max_out, rounding_error(spec.out_dtype)) << difference.worst;
    EXPECT_LE(difference.max_lse, 4e-6) << difference.worst;
    EXPECT_TRUE(problem.padding_intact());
  }
}

TEST(ReferenceAttention, IsTheSameWithAnyNumberOfThreads) {
  const AttentionProblem problem({.seqlens_q = {5, 1, 30}, .seqlens_k = {9, 77, 30}, .sinks = true});
  reference_attention(problem.params());
  const AttentionResult alone = problem.result();
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    reference_attention(problem.params(), {.device = {}, .pool = &pool});
    EXPECT_EQ(problem.result().out, alone.out);
    EXPECT_EQ(problem.result().lse, alone.lse);
  }
}

TEST(ReferenceAttention, RowsThatSeeNoKeyAreZeroWithAndWithoutSinks) {
  for (bool sinks : {false, true}) {
    // A request without keys, and one whose first two queries come before its first key.
    const AttentionProblem problem({.seqlens_q = {2, 3}, .seqlens_k = {0, 1}, .num_heads = 2, .sinks = sinks});
    reference_attention(problem.params());
    const AttentionResult result = problem.result();
    for (int row = 0; row < 4; ++row) {
      for (int i = 0; i < 2 * 64; ++i) EXPECT_EQ(result.out[row * 2 * 64 + i], 0.0f);
      for (int head = 0; head < 2; ++head) EXPECT_EQ(result.lse[head * 5 + row], -kInfinity);
    }
    EXPECT_TRUE(std::isfinite(result.lse[4]));
  }
}

TEST(ReferenceAttention, ASingleKeyGivesItsValueAndItsScore) {
  const AttentionProblem problem({.seqlens_q = {1}, .seqlens_k = {1}, .num_heads = 1, .num_heads_kv = 1});
  reference_attention(problem.params());
  const AttentionResult result = problem.result();
  double score = 0.0;
  for (int d = 0; d < 64; ++d) {
    EXPECT_EQ(result.out[d], problem.value(0, 0, 0, d));
    score += double{problem.query(0, 0, 0, d)} * problem.key(0, 0, 0, d) / 8.0;
  }
  EXPECT_NEAR(result.lse[0], score, 1e-6);
}

TEST(ReferenceAttention, SurvivesScoresThatOverflowTheExponential) {
  AttentionSpec spec{.seqlens_q = {20}, .seqlens_k = {40}, .score_deviation = 1e4f};
  const AttentionProblem problem(spec);
  reference_attention(problem.params());
  const AttentionResult result = problem.result();
  for (float value : result.out) EXPECT_LE(std::abs(value), 10.0f);
  for (float lse : result.lse) EXPECT_TRUE(std::isfinite(lse));
}

TEST(ReferenceAttention, WritesNoLseWhenNoneIsAskedFor) {
  const AttentionProblem problem({.seqlens_q = {3}, .seqlens_k = {3}});
  AttentionParams params = problem.params();
  params.softmax_lse = nullptr;
  reference_attention(params);
  const AttentionResult result = problem.result();
  EXPECT_EQ(result.out, problem.run_reference().out);
  for (float lse : result.lse) EXPECT_TRUE(std::isnan(lse));
}

TEST(ReferenceAttention, RefusesParametersThatAreNotValid) {
  AttentionParams params;
  EXPECT_THROW(reference_attention(params), std::logic_error);
}

TEST(AttentionProblem, CompareSeesNaNInfinityAndTheWorstPlace) {
  const AttentionProblem problem({.seqlens_q = {2}, .seqlens_k = {2}});
  const AttentionResult expected = problem.run_reference();
  EXPECT_EQ(compare(expected, expected).max_out, 0.0);
  EXPECT_EQ(compare(problem.result(), expected).max_out, kInfinity) << "the output is NaN until a kernel ran";
  AttentionResult other = expected;
  other.out[64 * 4 + 3] += 0.5f;
  other.lse[2] = -kInfinity;
  const AttentionDifference difference = compare(other, expected);
  EXPECT_NEAR(difference.max_out, 0.5, 1e-6);
  EXPECT_EQ(difference.max_lse, kInfinity);
  EXPECT_NE(difference.worst.find("out[row 1, head 0, 3]"), std::string::npos) << difference.worst;
  EXPECT_NE(difference.worst.find("lse[head 1, row 0]"), std::string::npos) << difference.worst;
}

}  // namespace
}  // namespace onepass
