// Keys and values that lie further apart than 32 bits count: a cache of tens of gigabytes, of which a few pages exist.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <random>

#include "attention/cpu/flash_attention.h"
#include "attention/reference/reference_attention.h"

namespace onepass {
namespace {

constexpr int64_t kBeyond32Bits = (int64_t{1} << 31) + 4096;

// Address space without memory behind it: pages come into being where they are written.
class SparseMemory {
 public:
  explicit SparseMemory(size_t size)
      : size_(size),
        data_(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~SparseMemory() {
    if (ok()) ::munmap(data_, size_);
  }
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;

  bool ok() const { return data_ != MAP_FAILED; }
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  size_t size_;
  void* data_;
};

// One request of 1 or 6 query rows over 5 pages of 16 tokens.
class LargeOffsets : public testing::TestWithParam<DType> {
 protected:
  static constexpr int kPages = 5, kPageSize = 16, kHeads = 4, kKvHeads = 2, kHeadDim = 64;
  static constexpr int64_t kRow = kKvHeads * kHeadDim;
  static constexpr int kKeys = kPages * kPageSize - 3;

  LargeOffsets() {
    std::normal_distribution<float> normal;
    for (auto* values : {&k_, &v_}) {
      std::vector<float> numbers(kPages * kPageSize * kRow);
      for (float& number : numbers) number = normal(random_);
      values->resize(numbers.size() * size_of(GetParam()));
      convert_from_float(numbers.data(), GetParam(), static_cast<int64_t>(numbers.size()), values->data());
    }
    for (float& number : q_) number = normal(random_);
  }

  // Of the compact copy: pages one behind the other.
  AttentionParams params(int num_queries, std::vector<float>& out) {
    out.assign(static_cast<size_t>(num_queries) * kHeads * kHeadDim, NAN);
    cu_seqlens_q_[1] = num_queries;
    return {.q = q_,
            .q_row_stride = kHeads * kHeadDim,
            .q_head_stride = kHeadDim,
            .k = k_.data(),
            .v = v_.data(),
            .kv_dtype = GetParam(),
            .k_page_stride = kPageSize * kRow,
            .k_row_stride = kRow,
            .k_head_stride = kHeadDim,
            .v_page_stride = kPageSize * kRow,
            .v_row_stride = kRow,
            .v_head_stride = kHeadDim,
            .out = out.data(),
            .out_row_stride = kHeads * kHeadDim,
            .out_head_stride = kHeadDim,
            .batch = 1,
            .total_q = num_queries,
            .max_seqlen_q = num_queries,
            .num_heads = kHeads,
            .num_heads_kv = kKvHeads,
            .head_dim = kHeadDim,
            .head_dim_v = kHeadDim,
            .cu_seqlens_q = cu_seqlens_q_,
            .cache_seqlens = &kKeys_,
            .page_table = page_table_,
            .page_table_stride = kPages,
            .page_size = kPageSize,
            .softmax_scale = 0.125f,
            .causal = true};
  }

  // The pieces of `compact`, each `piece` elements, at multiples of `stride` elements.
  void scatter(const std::vector<std::byte>& compact, int64_t piece, int64_t stride, const SparseMemory& memory) const {
    const size_t bytes = static_cast<size_t>(piece) * size_of(GetParam());
    for (size_t i = 0; i * bytes < compact.size(); ++i) {
      std::memcpy(memory.data() + i * static_cast<size_t>(stride) * size_of(GetParam()), compact.data() + i * bytes,
                  bytes);
    }
  }

  // `far` is `near` with its keys and values elsewhere: the same bits from every kernel.
  static void expect_same(const AttentionParams& near, AttentionParams far) {
    const int64_t count = near.total_q * near.out_row_stride;
    const float* const expected = static_cast<const float*>(near.out);
    std::vector<float> out(static_cast<size_t>(count));
    far.out = out.data();
    const auto check = [&](const char* kernel) {
      for (int64_t i = 0; i < count; ++i) ASSERT_EQ(out[static_cast<size_t>(i)], expected[i]) << kernel << " at " << i;
      std::fill(out.begin(), out.end(), NAN);
    };
    reference_attention(near);
    reference_attention(far);
    check("reference");
    ThreadPool pool(2);
    for (const CpuIsa isa : supported_cpu_isas()) {
      const Stream stream{.pool = &pool, .isa = isa};
      FlashAttentionWorkspace workspace;
      ASSERT_TRUE(flash_attention_cpu_supports(far).ok());
      flash_attention_cpu(near, workspace, stream);
      flash_attention_cpu(far, workspace, stream);
      check(std::string(to_string(isa)).c_str());
    }
  }

  const int32_t kKeys_ = kKeys;
  std::mt19937 random_{7};
  std::vector<std::byte> k_, v_;
  float q_[6 * kHeads * kHeadDim];
  int32_t cu_seqlens_q_[2] = {0, 0};
  const int32_t page_table_[kPages] = {3, 0, 4, 1, 2};
};

INSTANTIATE_TEST_SUITE_P(DTypes, LargeOffsets, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& param_info) { return std::string(to_string(param_info.param)); });

TEST_P(LargeOffsets, OfPages) {
  const SparseMemory k(kPages * kBeyond32Bits * size_of(GetParam())), v(2 * kBeyond32Bits * size_of(GetParam()));
  if (!k.ok() || !v.ok()) GTEST_SKIP() << "no address space";
  const int64_t v_stride = kBeyond32Bits / 3;  // only the last page lies beyond
  scatter(k_, kPageSize * kRow, kBeyond32Bits, k);
  scatter(v_, kPageSize * kRow, v_stride, v);
  for (const int num_queries : {1, 6}) {
    std::vector<float> out;
    const AttentionParams near = params(num_queries, out);
    AttentionParams far = near;
    far.k = k.data();
    far.v = v.data();
    far.k_page_stride = kBeyond32Bits;
    far.v_page_stride = v_stride;
    expect_same(near, far);
  }
}

TEST_P(LargeOffsets, OfRows) {
  constexpr int64_t kStride = kBeyond32Bits / 40;  // the later half of the rows
  const SparseMemory k(kPages * kPageSize * kStride * size_of(GetParam())),
      v(kPages * kPageSize * kStride * size_of(GetParam()));
  if (!k.ok() || !v.ok()) GTEST_SKIP() << "no address space";
  scatter(k_, kRow, kStride, k);
  scatter(v_, kRow, kStride, v);
  const int32_t cu_seqlens_k[] = {0, kKeys};
  for (const int num_queries : {1, 6}) {
    std::vector<float> out;
    AttentionParams near = params(num_queries, out);
    near.page_table = nullptr;
    near.page_table_stride = near.page_size = 0;
    near.cu_seqlens_k = cu_seqlens_k;
    AttentionParams far = near;
    far.k = k.data();
    far.v = v.data();
    far.k_row_stride = far.v_row_stride = kStride;
    expect_same(near, far);
  }
}

}  // namespace
}  // namespace onepass
