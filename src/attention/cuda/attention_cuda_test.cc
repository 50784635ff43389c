// Every kernel against the float64 reference, on random problems that it takes.
#include <cmath>
#include <limits>

#include "attention/cuda/testing/kernel_test.h"

namespace onepass {
namespace {

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
  std::mt19937_64 rng(seed());
  for (int64_t i = 0; i < iterations(); ++i) {
    ASSERT_OK_AND_ASSIGN(const AttentionSpec spec, supported_spec(rng));
    SCOPED_TRACE(to_string(spec));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(spec));
    // Kernels may choose by the bound on a request's rows, which need not be tight.
    AttentionParams params = problem.params();
    params.max_seqlen_q += 2048;
    if (i % 2 == 0 || !kernel().supports(params, gpu()).ok()) params = problem.params();
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), params));
    ASSERT_OK(runner.attend(params));
    expect_right(problem);
    if (HasFatalFailure()) return;
  }
}

// One token a request, many requests, heads of 64 numbers side by side: hopper-decode reads two at a time.
TEST_P(AttentionCudaTest, DecodesNeighbouringHeads) {
  const auto many_neighbours = [](AttentionSpec& spec) {
    constexpr int kPages[] = {0, 16, 32, 64, 256};
    std::mt19937_64 rng(spec.seed);
    spec.head_dim = spec.head_dim_v = 64;
    spec.num_heads_kv = 2 + 2 * static_cast<int>(rng() % 2);
    spec.num_heads = spec.num_heads_kv << rng() % 4;
    spec.page_size = kPages[rng() % 5];
    spec.kv_dtype = spec.q_dtype;
    spec.split_size = 0;
    spec.seqlens_q.assign(64 + rng() % 8, 1);
    spec.seqlens_k.clear();
    for (const int rows : spec.seqlens_q) spec.seqlens_k.push_back(static_cast<int>(rng() % 300) + rows);
    return true;
  };
  std::mt19937_64 rng(seed() + 11);
  for (int64_t i = 0; i < 20; ++i) {
    const StatusOr<AttentionSpec> spec = supported_spec(rng, many_neighbours);
    if (!spec.ok()) GTEST_SKIP() << spec.status();  // a kernel of other head dimensions
    SCOPED_TRACE(to_string(*spec));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(*spec));
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
    ASSERT_OK(runner.attend(problem.params()));
    expect_right(problem);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionCudaTest, RunsTwiceAfterOnePlan) {
  std::mt19937_64 rng(seed() + 1);
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

// The page table that plan() sees is another layer's: of pages that exist, or of none.
TEST_P(AttentionCudaTest, PlansByAnotherPageTable) {
  std::mt19937_64 rng(seed() + 12);
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK_AND_ASSIGN(const AttentionSpec spec,
                         supported_spec(rng, [](const AttentionSpec& random) { return random.page_size > 0; }));
    SCOPED_TRACE(to_string(spec));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(spec));
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
    AttentionParams planned = problem.params();
    const std::vector<int32_t> pages(planned.batch * planned.page_table_stride, i % 2 == 0 ? 0 : 2147480000);
    const std::span<const std::byte> bytes = std::as_bytes(std::span(pages));
    ASSERT_OK_AND_ASSIGN(CudaBuffer table, CudaBuffer::allocate(static_cast<int64_t>(bytes.size())));
    ASSERT_OK(table.upload(bytes));
    planned.page_table = static_cast<const int32_t*>(table.data());
    ASSERT_OK(runner.plan(planned));
    ASSERT_OK(runner.run(problem.params()));
    ASSERT_OK(runner.finish());
    expect_right(problem);
    if (HasFatalFailure()) return;
  }
}

// Kernels may compute long requests in larger tiles, and choose by the average.
TEST_P(AttentionCudaTest, MatchesTheReferenceOnLongRequests) {
  std::mt19937_64 rng(seed() + 10);
  for (int i = 0; i < 6; ++i) {
    const StatusOr<AttentionSpec> drawn = supported_spec(rng, [&](AttentionSpec& s) {
      const auto up_to = [&](int most) { return static_cast<int>(rng() % (most + 1)); };
      s.seqlens_q = i % 3 == 2 ? std::vector{3000 + up_to(200), 1100 + up_to(70)} : std::vector{2048 + up_to(300)};
      s.seqlens_k = s.seqlens_q;
      for (int& keys : s.seqlens_k) keys += up_to(1) * up_to(600);
      s.causal |= i % 2 == 0;
      s.num_heads_kv = 1;
      s.num_heads = 1 + up_to(1);
      return s.head_dim == 128 && s.head_dim_v == 128 && s.split_size == 0 && s.q_dtype != DType::kF32;
    });
    if (!drawn.ok()) GTEST_SKIP() << drawn.status();
    SCOPED_TRACE(to_string(*drawn));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(*drawn));
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
    ASSERT_OK(runner.attend(problem.params()));
    expect_right(problem);
  }
}

// Many times more tiles than multiprocessors, of requests of odd lengths: kernels deal tiles out in several ways by
// then. Run twice, as what deals them out must be as it was.
TEST_P(AttentionCudaTest, SharesOutManyTiles) {
  struct Case {
    int head_dim, batch, most_rows, prefix, page_size;
    bool causal = true;
    DType dtype = DType::kBF16;
  };
  std::mt19937_64 rng(seed() + 13);
  std::vector<AttentionSpec> specs;
  for (const Case& c : {Case{128, 41, 400, 0, 64},
                        {128, 41, 400, 700, 64},
                        {128, 41, 400, 0, 64, false},
                        {128, 41, 400, 0, 1, true, DType::kF16},
                        {64, 41, 400, 0, 64, true, DType::kF16},
                        {256, 41, 300, 0, 0},
                        {128, 1100, 30, 10, 16}}) {
    AttentionSpec spec;
    for (int b = 0; b < c.batch; ++b) {
      spec.seqlens_q.push_back(static_cast<int>(rng() % (c.most_rows + 1)));
      spec.seqlens_k.push_back(spec.seqlens_q.back() + static_cast<int>(rng() % (c.prefix + 1)));
    }
    spec.num_heads = 16, spec.num_heads_kv = 4;
    spec.head_dim = spec.head_dim_v = c.head_dim;
    spec.page_size = c.page_size;
    spec.q_dtype = spec.kv_dtype = spec.out_dtype = c.dtype;
    spec.causal = c.causal;
    spec.seed = rng();
    specs.push_back(spec);
  }
  expect_right_of_those_taken(specs, /*runs=*/2);
}

// No limit in other words: beyond what sums of positions hold in 32 bits.
TEST_P(AttentionCudaTest, TakesHugeWindows) {
  constexpr int kHuge = std::numeric_limits<int>::max();
  std::vector<AttentionSpec> specs;
  for (const int seqlen_q : {1, 300}) {
    for (const auto& [left, right] : {std::pair{kHuge, kHuge}, {-1, kHuge}, {kHuge, 0}, {kHuge - 1, 7}}) {
      AttentionSpec spec;
      spec.seqlens_q = {seqlen_q, seqlen_q + 2};
      spec.seqlens_k = {400, seqlen_q};  // two rows before the first key
      spec.num_heads = 4, spec.num_heads_kv = 2;
      spec.head_dim = spec.head_dim_v = 128;
      spec.page_size = 64;
      spec.q_dtype = spec.kv_dtype = spec.out_dtype = DType::kBF16;
      spec.causal = false;
      spec.window_left = left, spec.window_right = right;
      specs.push_back(spec);
    }
  }
  expect_right_of_those_taken(specs);
}

// A chunk that ends between two rows of a tile: without a causal mask some of its rows see several blocks of keys more
// than others.
TEST_P(AttentionCudaTest, ChunksEndInsideATile) {
  struct Case {
    int head_dim, chunk, page_size;
    bool causal = false;
  };
  std::vector<AttentionSpec> specs;
  for (const auto& [head_dim, chunk, page_size, causal] : {Case{128, 448, 0},
                                                           {128, 448, 64},
                                                           {128, 448, 1},
                                                           {128, 576, 16},
                                                           {256, 192, 0},
                                                           {256, 832, 64},
                                                           {256, 448, 1},
                                                           {64, 512, 0},
                                                           {64, 512, 64},
                                                           {64, 448, 1},
                                                           {128, 448, 0, true},
                                                           {128, 576, 64, true},
                                                           {256, 192, 1, true},
                                                           {64, 512, 16, true}}) {
    AttentionSpec spec;
    spec.seqlens_q = spec.seqlens_k = {1024};
    spec.num_heads = spec.num_heads_kv = 2;
    spec.head_dim = spec.head_dim_v = head_dim;
    spec.page_size = page_size;
    spec.q_dtype = spec.kv_dtype = spec.out_dtype = DType::kBF16;
    spec.causal = causal;
    spec.attention_chunk = chunk;
    specs.push_back(spec);
  }
  expect_right_of_those_taken(specs);
}

// The smallest pages that each head dimension's kernels copy by boxes, and those below.
TEST_P(AttentionCudaTest, CopiesSmallPages) {
  std::vector<AttentionSpec> specs;
  for (const auto& [head_dim, head_dim_v] : {std::pair{64, 64}, {128, 128}, {192, 128}, {256, 256}}) {
    for (const int page_size : {2, 4, 8, 16}) {
      AttentionSpec spec;
      spec.seqlens_q = {224, 3};
      spec.seqlens_k = {224, 500};
      spec.num_heads = 4, spec.num_heads_kv = 2;
      spec.head_dim = head_dim, spec.head_dim_v = head_dim_v;
      spec.page_size = page_size;
      spec.q_dtype = spec.kv_dtype = spec.out_dtype = DType::kBF16;
      specs.push_back(spec);
    }
  }
  expect_right_of_those_taken(specs);
}

// Requests that end around the 32nd page, and around the 64th: kernels keep the ids of as many pages as a warp has
// threads.
TEST_P(AttentionCudaTest, LooksManyPagesUp) {
  std::vector<AttentionSpec> specs;
  for (const auto& [head_dim, head_dim_v] : {std::pair{64, 64}, {128, 128}, {192, 128}, {256, 256}}) {
    for (const int page_size : {1, 8, 16, 64, 256, 1024}) {
      AttentionSpec spec;
      const int keys = 32 * page_size;
      spec.seqlens_q = {40, 40, 40};
      spec.seqlens_k = {keys - 1, keys + 1, page_size < 256 ? 2 * keys : keys};
      for (int b = 0; b < 3; ++b) spec.seqlens_q[b] = std::min(spec.seqlens_q[b], spec.seqlens_k[b]);
      spec.num_heads = spec.num_heads_kv = page_size < 1024 ? 2 : 1;
      spec.head_dim = head_dim, spec.head_dim_v = head_dim_v;
      spec.page_size = page_size;
      spec.q_dtype = spec.kv_dtype = spec.out_dtype = DType::kBF16;
      specs.push_back(spec);
      spec.window_left = keys / 2;
      specs.push_back(spec);
    }
  }
  // Long enough for kernels that share the keys of long causal requests.
  for (const int page_size : {8, 16, 64, 256}) {
    AttentionSpec spec;
    spec.seqlens_q = {2100, 2048};
    spec.seqlens_k = {2100 + 33 * page_size, 2049};
    spec.num_heads = spec.num_heads_kv = 1;
    spec.head_dim = spec.head_dim_v = 128;
    spec.page_size = page_size;
    spec.q_dtype = spec.kv_dtype = spec.out_dtype = DType::kF16;
    specs.push_back(spec);
  }
  expect_right_of_those_taken(specs);
}

TEST_P(AttentionCudaTest, TakesNoRows) {
  std::mt19937_64 rng(seed() + 8);
  ASSERT_OK_AND_ASSIGN(AttentionSpec spec, supported_spec(rng));
  for (int& rows : spec.seqlens_q) rows = 0;
  ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(spec));
  ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), problem.params()));
  ASSERT_OK(runner.attend(problem.params()));
  ASSERT_OK(problem.result().status());
  EXPECT_TRUE(problem.padding_intact());
}

TEST_P(AttentionCudaTest, LeavesOutTheLse) {
  std::mt19937_64 rng(seed() + 9);
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK_AND_ASSIGN(const AttentionSpec spec, supported_spec(rng));
    SCOPED_TRACE(to_string(spec));
    ASSERT_OK_AND_ASSIGN(DeviceProblem problem, DeviceProblem::make(spec));
    AttentionParams params = problem.params();
    params.softmax_lse = nullptr;
    ASSERT_OK_AND_ASSIGN(const KernelRunner runner, KernelRunner::make(kernel(), gpu(), params));
    ASSERT_OK(runner.attend(params));
    ASSERT_OK_AND_ASSIGN(const AttentionResult result, problem.result());
    const AttentionResult exact = problem.host().run_reference(host());
    const AttentionDifference difference = compare(result, exact);
    EXPECT_LE(difference.max_out, error_bound(problem.host(), exact, host()).out) << difference.worst;
    for (const float lse : result.lse) ASSERT_TRUE(std::isnan(lse));
  }
}

// K and V beyond 2^31 elements (4 GiB each).
TEST_P(AttentionCudaTest, OffsetsHave64Bits) {
  if (gpu().memory_bytes < int64_t{20} << 30) GTEST_SKIP() << "needs 20 GiB of device memory";
  std::mt19937_64 rng(seed() + 4);
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
