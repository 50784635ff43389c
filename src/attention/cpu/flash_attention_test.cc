#include "attention/cpu/flash_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "attention/cpu/flash_plan.h"
#include "attention/testing/attention_problem.h"

namespace onepass {
namespace {

constexpr int kHeadDims[] = {64, 80, 96, 128, 192, 256, 8, 40, 72};

// Every rounding that a straightforward computation with operands of the given dtype makes: Q and the weights rounded,
// float32 sums, no tiles. What a kernel may err by is measured against what this errs by, as in FlashAttention's own
// tests.
AttentionResult low_precision(const AttentionProblem& problem, bool bf16_operands) {
  const AttentionSpec& spec = problem.spec();
  const AttentionParams& p = problem.params();
  const auto round = [&](float x) { return bf16_operands ? to_float(to_bfloat16(x)) : x; };
  AttentionResult result = problem.run_reference();  // for the shapes, and the lse of rows that see no key
  std::fill(result.out.begin(), result.out.end(), 0.0f);
  std::vector<float> scores, weights;
  for (int b = 0; b < p.batch; ++b) {
    for (int i = 0; i < spec.seqlens_q[b]; ++i) {
      const cpu::KeyRange range = cpu::visible_keys(p, b, i);
      for (int h = 0; h < spec.num_heads; ++h) {
        const int head_kv = h / (spec.num_heads / spec.num_heads_kv), scale_at = b * spec.num_heads_kv + head_kv;
        float max = spec.sinks ? p.sinks[h] : -INFINITY;
        scores.clear();
        for (int64_t j = range.first; j <= range.last; ++j) {
          float score = 0.0f;
          for (int d = 0; d < spec.head_dim; ++d)
            score += round(problem.query(b, i, h, d)) * problem.key(b, static_cast<int>(j), head_kv, d);
          score *= p.softmax_scale;
          if (spec.descales) score *= p.q_descale[scale_at] * p.k_descale[scale_at];
          if (spec.softcap > 0) score = spec.softcap * std::tanh(score / spec.softcap);
          scores.push_back(score);
          max = std::max(max, score);
        }
        if (scores.empty()) continue;
        float sum = spec.sinks ? std::exp(p.sinks[h] - max) : 0.0f;
        float* const out =
            result.out.data() + ((int64_t{p.cu_seqlens_q[b]} + i) * spec.num_heads + h) * spec.head_dim_v;
        for (size_t n = 0; n < scores.size(); ++n) {
          const float weight = std::exp(scores[n] - max);
          sum += weight;
          for (int d = 0; d < spec.head_dim_v; ++d) {
            out[d] +=
                round(weight) * problem.value(b, static_cast<int>(range.first + static_cast<int64_t>(n)), head_kv, d);
          }
        }
        result.lse[int64_t{h} * p.total_q + p.cu_seqlens_q[b] + i] = max + std::log(sum);
        const float scale = (spec.descales ? p.v_descale[scale_at] : 1.0f) / sum;
        for (int d = 0; d < spec.head_dim_v; ++d) out[d] *= scale;
      }
    }
  }
  return result;
}

// Every instruction set of this machine on one problem. The reference and the low-precision baselines are computed
// once.
void expect_close(AttentionProblem& problem, ThreadPool& pool) {
  const AttentionSpec& spec = problem.spec();
  const AttentionResult expected = problem.run_reference();
  float largest = 0.0f;
  for (float value : expected.out) largest = std::max(largest, std::fabs(value));
  const double out_rounding = spec.out_dtype == DType::kBF16  ? 0x1p-8
                              : spec.out_dtype == DType::kF16 ? 0x1p-11
                                                              : 0x1p-20;
  const AttentionDifference float_error = compare(low_precision(problem, false), expected);
  for (CpuIsa isa : supported_cpu_isas()) {
    SCOPED_TRACE(to_string(isa));
    problem.clear_output();
    FlashAttentionWorkspace workspace;
    flash_attention_cpu(problem.params(), workspace, {.pool = &pool, .isa = isa});
    ASSERT_TRUE(problem.padding_intact());
    const bool bf16_operands = isa == CpuIsa::kAvx512Bf16 && spec.kv_dtype == DType::kBF16;
    const AttentionDifference allowed = bf16_operands ? compare(low_precision(problem, true), expected) : float_error;
    const AttentionDifference error = compare(problem.result(), expected);
    ASSERT_LE(error.max_out, 2 * allowed.max_out + out_rounding * largest + 1e-6) << error.worst;
    ASSERT_LE(error.max_lse, 2 * allowed.max_lse + 2e-5 * (1 + spec.score_deviation)) << error.worst;
  }
}

TEST(FlashAttentionCpu, RandomProblemsAgreeWithTheReference) {
  std::mt19937_64 rng(4711);
  for (int round = 0; round < 120; ++round) {
    AttentionSpec spec = random_attention_spec(rng, kHeadDims);
    const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBF16};
    spec.kv_dtype = dtypes[rng() % 3];
    spec.q_dtype = dtypes[rng() % 3];
    spec.out_dtype = dtypes[rng() % 3];
    SCOPED_TRACE(to_string(spec));
    AttentionProblem problem(spec);
    ThreadPool pool(1 + static_cast<int>(rng() % 3));
    expect_close(problem, pool);
    if (HasFatalFailure()) return;
  }
}

// Head dimensions of their own for K and V, more query heads than a tile has rows, and lengths around the tile's keys
// and rows.
TEST(FlashAttentionCpu, EdgesOfTilesAgreeWithTheReference) {
  ThreadPool pool(2);
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const auto& [heads, heads_kv] : {std::pair(1, 1), {8, 2}, {7, 1}, {100, 1}}) {
      AttentionSpec spec{.seqlens_q = {1, 23, 24, 97, 0, 5},
                         .seqlens_k = {127, 128, 129, 257, 256, 5},
                         .num_heads = heads,
                         .num_heads_kv = heads_kv,
                         .head_dim = heads == 8 ? 64 : 192,
                         .head_dim_v = heads == 8   ? 64
                                       : heads == 7 ? 256
                                                    : 128,
                         .page_size = 64,
                         .kv_dtype = dtype};
      if (heads > 1) {
        spec.seqlens_q = {1, 2, 25};
        spec.seqlens_k = {130, 17, 129};
      }
      SCOPED_TRACE(to_string(spec));
      AttentionProblem problem(spec);
      expect_close(problem, pool);
      if (HasFatalFailure()) return;
    }
  }
}

// Decoding and a few tokens more, in shapes that are read as a stream where there are bf16 dot products.
TEST(FlashAttentionCpu, StreamsAgreeWithTheReference) {
  std::mt19937_64 rng(2026);
  const auto pick = [&](std::initializer_list<int> values) { return values.begin()[rng() % values.size()]; };
  int streamed = 0;
  for (int round = 0; round < 120; ++round) {
    const int group = 1 + static_cast<int>(rng() % 8);
    AttentionSpec spec{.seed = rng(),
                       .num_heads_kv = pick({2, 3, 4, 5, 8}),
                       .head_dim = pick({32, 64, 96, 128, 160, 256}),
                       .page_size = pick({0, 1, 2, 3, 7, 16, 64, 100, 256}),
                       .kv_dtype = DType::kBF16,
                       .causal = rng() % 4 != 0,
                       .window_left = rng() % 4 == 0 ? pick({0, 1, 5, 64}) : -1,
                       .attention_chunk = rng() % 8 == 0 ? pick({3, 64}) : 0,
                       .softcap = rng() % 4 == 0 ? 2.0f : 0.0f,
                       .sinks = rng() % 4 == 0,
                       .descales = rng() % 4 == 0,
                       .num_splits = pick({0, 0, 1, 3}),
                       .split_size = rng() % 4 == 0 ? pick({1, 2, 33, 64}) : 0,
                       .padding = pick({0, 16})};
    spec.num_heads = spec.num_heads_kv * group;
    spec.head_dim_v = rng() % 2 == 0 ? spec.head_dim : pick({32, 64, 96, 128});
    for (int request = 0; request < pick({1, 2, 3}); ++request) {
      spec.seqlens_q.push_back(pick({1, 1, 2, 3}));
      spec.seqlens_k.push_back(std::max(spec.seqlens_q.back(), pick({0, 1, 2, 3, 4, 5, 63, 64, 65, 127, 200, 301})));
    }
    SCOPED_TRACE(to_string(spec));
    AttentionProblem problem(spec);
    ThreadPool pool(1 + static_cast<int>(rng() % 3));
    for (const cpu::FlashItem& item : cpu::plan_flash_attention(problem.params(), pool.num_threads()).items)
      streamed += cpu::can_stream(problem.params(), item);
    expect_close(problem, pool);
    if (HasFatalFailure()) return;
  }
  EXPECT_GE(streamed, 60);
}

TEST(FlashAttentionCpu, SplitsOfEveryKindAgree) {
  ThreadPool pool(3);
  for (int num_splits : {0, 1, 2, 7, 1000}) {
    for (int split_size : {0, 1, 64, 100}) {
      AttentionSpec spec{.seqlens_q = {1, 2},
                         .seqlens_k = {513, 90},
                         .num_heads = 6,
                         .num_heads_kv = 2,
                         .kv_dtype = DType::kBF16,
                         .sinks = true,
                         .num_splits = num_splits,
                         .split_size = split_size};
      SCOPED_TRACE(to_string(spec));
      AttentionProblem problem(spec);
      expect_close(problem, pool);
      if (HasFatalFailure()) return;
    }
  }
}

// Bit for bit: any number of threads, and a request alone or in a batch. Of one KV head, and of several as a stream.
TEST(FlashAttentionCpu, AFixedSplitSizeDoesNotDependOnThreadsOrTheRestOfTheBatch) {
  for (const auto& [first_seqlen_q, heads_kv] : {std::pair(3, 1), {1, 4}, {2, 4}}) {
    const int heads = 4 * heads_kv;
    AttentionProblem problem({.seqlens_q = {first_seqlen_q, 1, 40},
                              .seqlens_k = {1000, 700, 900},
                              .num_heads = heads,
                              .num_heads_kv = heads_kv,
                              .kv_dtype = DType::kBF16,
                              .split_size = 128});
    for (CpuIsa isa : supported_cpu_isas()) {
      const auto run = [&](int threads, int batch) {
        ThreadPool pool(threads);
        FlashAttentionWorkspace workspace;
        problem.clear_output();
        AttentionParams params = problem.params();
        params.batch = batch;
        params.softmax_lse = nullptr;
        flash_attention_cpu(params, workspace, {.pool = &pool, .isa = isa});
        std::vector<float> out = problem.result().out;
        out.resize(int64_t{params.cu_seqlens_q[1]} * heads * 64);  // the first request's
        return out;
      };
      const std::vector<float> expected = run(1, 3);
      for (float value : expected) ASSERT_TRUE(std::isfinite(value));
      for (int threads : {1, 2, 3}) {
        for (int batch : {1, 2, 3})
          EXPECT_EQ(run(threads, batch), expected) << threads << " threads, batch of " << batch;
      }
    }
  }
}

// Tokens first .. last-1 of one request of a causal problem, as a later step would bring them.
AttentionParams part_of(const AttentionProblem& problem, int request, int first, int last, int32_t (&lengths)[3]) {
  AttentionParams p = problem.params();
  const int64_t token = p.cu_seqlens_q[request] + first;
  const int missing = problem.spec().seqlens_q[request] - last;
  p.q = static_cast<const std::byte*>(p.q) + token * p.q_row_stride * static_cast<int64_t>(size_of(p.q_dtype));
  p.out = static_cast<std::byte*>(p.out) + token * p.out_row_stride * static_cast<int64_t>(size_of(p.out_dtype));
  p.softmax_lse = nullptr;
  p.batch = 1;
  p.total_q = p.max_seqlen_q = last - first;
  lengths[0] = 0;
  lengths[1] = last - first;
  lengths[2] = p.cache_seqlens[request] - missing;
  p.cu_seqlens_q = lengths;
  p.cache_seqlens = lengths + 2;
  if (p.cu_seqlens_k != nullptr) p.cu_seqlens_k += request;
  if (p.page_table != nullptr) p.page_table += request * p.page_table_stride;
  for (const float** scale : {&p.q_descale, &p.k_descale, &p.v_descale}) {
    if (*scale != nullptr) *scale += request * p.num_heads_kv;
  }
  return p;
}

// Bit for bit: a prompt in one piece, in a batch with others, or in chunks of any size on any number of threads.
TEST(FlashAttentionCpu, BatchInvariantRowsDoNotDependOnWhatTheyAreComputedWith) {
  std::mt19937_64 rng(99);
  const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  for (int round = 0; round < 24; ++round) {
    AttentionSpec spec = random_attention_spec(rng, kHeadDims, 400);
    spec.kv_dtype = dtypes[rng() % 3];
    spec.causal = true;
    spec.window_right = -1;
    spec.num_splits = 0;
    spec.split_size = 16 << (rng() % 5);
    SCOPED_TRACE(to_string(spec));
    AttentionProblem problem(spec);
    const AttentionResult expected = problem.run_reference();
    for (CpuIsa isa : supported_cpu_isas()) {
      SCOPED_TRACE(to_string(isa));
      FlashAttentionWorkspace workspace;
      const auto run = [&](AttentionParams params) {
        params.batch_invariant = true;
        ThreadPool pool(1 + static_cast<int>(rng() % 3));
        flash_attention_cpu(params, workspace, {.pool = &pool, .isa = isa});
      };
      problem.clear_output();
      run(problem.params());
      const AttentionResult whole = problem.result();
      const AttentionDifference error = compare(whole, expected);
      ASSERT_LE(error.max_out, 0.1) << error.worst;  // close; the other tests say how close
      problem.clear_output();
      for (int request = 0; request < static_cast<int>(spec.seqlens_q.size()); ++request) {
        const int total = spec.seqlens_q[request];
        for (int first = 0; first < total;) {
          const int last = first + 1 + static_cast<int>(rng() % (rng() % 2 == 0 ? 3 : total - first));
          int32_t lengths[3];
          run(part_of(problem, request, first, std::min(last, total), lengths));
          first = std::min(last, total);
        }
      }
      const std::vector<float> parts = problem.result().out;
      ASSERT_TRUE(std::equal(parts.begin(), parts.end(), whole.out.begin())) << compare(problem.result(), whole).worst;
    }
  }
}

TEST(FlashAttentionCpu, NamesWhatItDoesNotSupport) {
  AttentionProblem problem({.seqlens_q = {1}, .seqlens_k = {1}});
  AttentionParams params = problem.params();
  EXPECT_TRUE(flash_attention_cpu_supports(params).ok());
  params.head_dim = 513;
  EXPECT_EQ(flash_attention_cpu_supports(params).message(),
            "attention: head_dim: expected at most 512 on the CPU, found 513");
  params = problem.params();
  params.num_heads = 3;
  EXPECT_FALSE(flash_attention_cpu_supports(params).ok());
}

}  // namespace
}  // namespace onepass
