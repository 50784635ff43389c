// Which kernel serves what. Needs no GPU.
#include <gtest/gtest.h>

#include <limits>

#include "attention/cuda/flash_attention_cuda.h"

namespace onepass {
namespace {

constexpr int kAddress = 0;  // kernels are not run: any will do

AttentionParams problem(int seqlen_q, int num_heads, int num_heads_kv, int head_dim, int head_dim_v) {
  AttentionParams p;
  p.q = p.k = p.v = &kAddress;
  p.out = const_cast<int*>(&kAddress);
  p.q_dtype = p.kv_dtype = p.out_dtype = DType::kBF16;
  p.batch = 4;
  p.total_q = 4 * seqlen_q;
  p.max_seqlen_q = seqlen_q;
  p.num_heads = num_heads;
  p.num_heads_kv = num_heads_kv;
  p.head_dim = head_dim;
  p.head_dim_v = head_dim_v;
  p.q_head_stride = p.k_head_stride = head_dim;
  p.v_head_stride = p.out_head_stride = head_dim_v;
  p.q_row_stride = int64_t{num_heads} * head_dim;
  p.out_row_stride = int64_t{num_heads} * head_dim_v;
  p.k_row_stride = int64_t{num_heads_kv} * head_dim;
  p.v_row_stride = int64_t{num_heads_kv} * head_dim_v;
  p.page_size = 64;
  p.k_page_stride = 64 * p.k_row_stride;
  p.v_page_stride = 64 * p.v_row_stride;
  p.total_kv_rows = 64 * 1000;
  p.cu_seqlens_q = p.cache_seqlens = p.page_table = &kAddress;
  p.page_table_stride = 100;
  p.softmax_scale = 0.1f;
  p.causal = true;
  return p;
}

GpuInfo h100() {
  return {.compute_capability = 90,
          .multiprocessors = 132,
          .l2_cache_bytes = int64_t{50} << 20,
          .shared_memory_bytes = 232448,
          .usable = true};
}

std::string chosen(const AttentionParams& params, int compute_capability, std::string_view name = "auto") {
  GpuInfo gpu = h100();
  gpu.compute_capability = compute_capability;
  const auto kernel = choose_cuda_attention_kernel(params, gpu, name);
  return kernel.ok() ? std::string((*kernel)->name) : std::string(kernel.status().message());
}

TEST(ChooseCudaAttentionKernel, TakesTheFastestThatSuits) {
  EXPECT_EQ(chosen(problem(1, 32, 8, 128, 128), 90), "hopper-decode");
  EXPECT_EQ(chosen(problem(8, 32, 8, 128, 128), 90), "hopper-decode");
  EXPECT_EQ(chosen(problem(512, 32, 8, 128, 128), 90), "hopper-prefill");
  // Few query tokens, but more rows than decoding takes, or a head dimension that it does not.
  EXPECT_EQ(chosen(problem(9, 32, 8, 128, 128), 90), "portable");
  EXPECT_EQ(chosen(problem(16, 32, 8, 128, 128), 90), "portable");
  EXPECT_EQ(chosen(problem(8, 64, 8, 128, 128), 90), "portable");
  EXPECT_EQ(chosen(problem(1, 32, 8, 192, 128), 90), "portable");
  EXPECT_EQ(chosen(problem(17, 32, 8, 192, 128), 90), "hopper-prefill");
  AttentionParams capped = problem(512, 32, 8, 128, 128);
  capped.softcap = 30.0f;
  EXPECT_EQ(chosen(capped, 90), "hopper-prefill");
  AttentionParams in_chunks = problem(512, 32, 8, 128, 128);
  in_chunks.attention_chunk = 448;
  EXPECT_EQ(chosen(in_chunks, 90), "hopper-prefill");
  in_chunks.causal = false;
  EXPECT_EQ(chosen(in_chunks, 90), "portable");
  EXPECT_NE(chosen(in_chunks, 90, "hopper-prefill").find("attention_chunk: expected it with causal, found 448"),
            std::string::npos);
  AttentionParams fp32 = problem(512, 32, 8, 128, 128);
  fp32.q_dtype = fp32.kv_dtype = fp32.out_dtype = DType::kF32;
  EXPECT_EQ(chosen(fp32, 90), "naive");
  // Hopper's instructions run on nothing else.
  for (const int other : {80, 89, 100, 120}) {
    EXPECT_EQ(chosen(problem(1, 32, 8, 128, 128), other), "portable") << other;
    EXPECT_EQ(chosen(problem(512, 32, 8, 128, 128), other), "portable") << other;
  }
}

TEST(ChooseCudaAttentionKernel, ChecksSizesAndStrides) {
  for (const int seqlen_q : {1, 512}) {
    for (int64_t AttentionParams::*stride : {&AttentionParams::q_row_stride, &AttentionParams::k_row_stride,
                                             &AttentionParams::v_page_stride, &AttentionParams::out_head_stride}) {
      AttentionParams p = problem(seqlen_q, 32, 8, 128, 128);
      p.*stride += 4;
      EXPECT_EQ(chosen(p, 90), "naive");
      EXPECT_NE(
          chosen(p, 90, seqlen_q == 1 ? "hopper-decode" : "hopper-prefill").find("expected a multiple of 16 bytes"),
          std::string::npos);
    }
  }
  AttentionParams p = problem(512, 32, 8, 128, 128);
  p.max_seqlen_q = 0;
  EXPECT_NE(chosen(p, 90).find("max_seqlen_q: expected the longest request's query tokens, found 0"),
            std::string::npos);
  p.max_seqlen_q = -1;
  EXPECT_NE(chosen(p, 90).find("max_seqlen_q: expected at least 0, found -1"), std::string::npos);
  // A bound that says nothing asks for no more memory than the rows that there are.
  p.max_seqlen_q = std::numeric_limits<int>::max();
  const GpuInfo gpu = h100();
  const auto kernel = choose_cuda_attention_kernel(p, gpu, "hopper-prefill");
  ASSERT_TRUE(kernel.ok()) << kernel.status();
  EXPECT_GT((*kernel)->scratch_bytes(p, gpu), 0);
  EXPECT_LT((*kernel)->scratch_bytes(p, gpu), 1 << 20);
}

TEST(ChooseCudaAttentionKernel, ANamedKernelServesWhatItSupports) {
  EXPECT_EQ(chosen(problem(1, 32, 8, 128, 128), 90, "hopper-prefill"), "hopper-prefill");
  EXPECT_EQ(chosen(problem(512, 32, 8, 128, 128), 90, "naive"), "naive");
  EXPECT_NE(chosen(problem(512, 32, 8, 128, 128), 80, "hopper-prefill").find("hopper-prefill: "), std::string::npos);
  EXPECT_EQ(
      chosen(problem(1, 32, 8, 128, 128), 90, "fast"),
      "attention: kernel: expected auto or one of hopper-decode, hopper-prefill, portable, naive, found \"fast\"");
}

}  // namespace
}  // namespace onepass
