// The GPU's append to a KV cache against a loop on the processor.
#include "kernels/cuda/append_kv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "tensor/cuda/cuda_buffer.h"
#include "tensor/cuda/cuda_stream.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

CudaBuffer upload(const std::vector<int32_t>& values) {
  return CudaBuffer::copy_of(std::as_bytes(std::span(values))).value();
}
CudaBuffer upload(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * size_of(dtype));
  convert_from_float(values.data(), dtype, static_cast<int64_t>(values.size()), bytes.data());
  return CudaBuffer::copy_of(bytes).value();
}
std::vector<float> download(const CudaBuffer& buffer, DType dtype) {
  std::vector<std::byte> bytes(buffer.size());
  EXPECT_TRUE(buffer.download(bytes).ok());
  std::vector<float> values(bytes.size() / size_of(dtype));
  convert_to_float(bytes.data(), dtype, static_cast<int64_t>(values.size()), values.data());
  return values;
}
std::vector<int32_t> download(const CudaBuffer& buffer) {
  std::vector<int32_t> values(buffer.size() / sizeof(int32_t));
  EXPECT_TRUE(buffer.download(std::as_writable_bytes(std::span(values))).ok());
  return values;
}

class AppendKvTest : public testing::Test {
 protected:
  void SetUp() override {
    const CudaInfo cuda = query_cuda();
    if (!cuda.problem.empty()) GTEST_SKIP() << "no GPU to test on: " << cuda.problem;
  }

  int pick(int low, int high) { return low + static_cast<int>(rng_() % static_cast<uint64_t>(high - low + 1)); }

  // Numbers that `dtype` represents exactly.
  std::vector<float> random_values(int64_t count, DType dtype) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) {
      store_float(&value, dtype, 0, normal(rng_));
      value = load_float(&value, dtype, 0);
    }
    return values;
  }

  std::mt19937_64 rng_{5};
};

// One head, rotated by row `position` of the tables.
std::vector<float> rotated(const float* head, int dim, int rotary_dim, bool interleaved,
                           const std::vector<float>& cosines, const std::vector<float>& sines, int64_t position) {
  std::vector<float> result(head, head + dim);
  const int half = rotary_dim / 2;
  for (int i = 0; i < half; ++i) {
    const int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
    const float c = cosines[position * half + i], s = sines[position * half + i];
    result[a] = head[a] * c - head[b] * s;
    result[b] = head[b] * c + head[a] * s;
  }
  return result;
}

TEST_F(AppendKvTest, AgreesWithTheCpu) {
  constexpr int kPageSizes[] = {1, 3, 16, 64};
  constexpr int kRows = 200;  // of the rotary tables
  for (int round = 0; round < 60; ++round) {
    const DType dtype = round % 2 == 0 ? DType::kBF16 : DType::kF16;
    const int batch = pick(1, 5), heads_kv = pick(1, 3), heads = heads_kv * pick(1, 4);
    const int dim = 16 * pick(1, 12), dim_v = 8 * pick(1, 24), rotary_dim = 16 * pick(0, dim / 16);
    const bool interleaved = pick(0, 1) == 1, paged = pick(0, 2) > 0, by_row = pick(0, 1) == 1,
               ragged = pick(0, 1) == 1;
    const int page_size = paged ? kPageSizes[pick(0, 3)] : 96, pages_each = paged ? 96 / page_size : 1;
    const int capacity = page_size * pages_each, pages = batch * pages_each + 2;
    SCOPED_TRACE(testing::Message() << "round " << round << ": batch " << batch << ", heads " << heads << "/"
                                    << heads_kv << ", head_dim " << dim << "/" << dim_v << ", rotary_dim " << rotary_dim
                                    << (interleaved ? " interleaved" : "") << ", pages of " << page_size);

    std::vector<int32_t> held(batch), pads(batch), first(batch), cu = {0};
    for (int b = 0; b < batch; ++b) {
      held[b] = pick(0, capacity - 1);
      pads[b] = paged ? 0 : pick(0, held[b]);
      first[b] = pick(0, 100);
      cu.push_back(cu[b] + (ragged ? pick(0, 9) : 4));
    }
    std::vector<int32_t> places(pages);
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), rng_);
    const std::vector<int32_t> table(places.begin(), places.begin() + ptrdiff_t{batch} * pages_each);
    const std::vector<int32_t> entries(places.begin(), places.begin() + batch);

    const int total = cu.back(), more = ragged ? 2 : 0;  // rows behind the last request are left alone
    const int64_t k_size = int64_t{heads_kv} * dim, v_size = int64_t{heads_kv} * dim_v, q_size = int64_t{heads} * dim;
    const std::vector<float> q = random_values((total + more) * q_size, dtype);
    const std::vector<float> k = random_values((total + more) * k_size, dtype);
    const std::vector<float> v = random_values((total + more) * v_size, dtype);
    const std::vector<float> cosines = random_values(int64_t{kRows} * rotary_dim / 2, dtype);
    const std::vector<float> sines = random_values(int64_t{kRows} * rotary_dim / 2, dtype);

    std::vector<float> k_expected(int64_t{pages} * page_size * k_size, 7.0f);
    std::vector<float> v_expected(int64_t{pages} * page_size * v_size, 7.0f);
    std::vector<float> q_expected((total + more) * q_size, 7.0f);
    const CudaBuffer k_cache = upload(k_expected, dtype), v_cache = upload(v_expected, dtype),
                     q_out = upload(q_expected, dtype);
    std::vector<int32_t> lengths(batch), begins(batch);
    for (int b = 0; b < batch; ++b) {
      lengths[b] = std::min(held[b] + cu[b + 1] - cu[b], capacity) - pads[b];
      begins[b] = entries[b] * capacity + pads[b];
      for (int i = 0; i < cu[b + 1] - cu[b]; ++i) {
        const int64_t row = cu[b] + i;
        for (int h = 0; h < heads; ++h) {
          const auto head = rotated(&q[row * q_size + int64_t{h} * dim], dim, rotary_dim, interleaved, cosines, sines,
                                    first[b] + (by_row ? i : 0));
          std::copy(head.begin(), head.end(), &q_expected[row * q_size + int64_t{h} * dim]);
        }
        const int slot = held[b] + i;
        if (slot >= capacity) continue;
        const int page = paged ? table[b * pages_each + slot / page_size] : entries[b];
        const int64_t to = int64_t{page} * page_size + slot % page_size;
        for (int h = 0; h < heads_kv; ++h) {
          const auto head =
              rotated(&k[row * k_size + int64_t{h} * dim], dim, rotary_dim, interleaved, cosines, sines, first[b] + i);
          std::copy(head.begin(), head.end(), &k_expected[to * k_size + int64_t{h} * dim]);
        }
        std::copy_n(&v[row * v_size], v_size, &v_expected[to * v_size]);
      }
    }

    const CudaBuffer held_on = upload(held), pads_on = upload(pads), first_on = upload(first), cu_on = upload(cu),
                     table_on = upload(table), entries_on = upload(entries), q_on = upload(q, dtype),
                     k_on = upload(k, dtype), v_on = upload(v, dtype), cosines_on = upload(cosines, dtype),
                     sines_on = upload(sines, dtype);
    CudaBuffer lengths_on = upload(lengths), begins_on = upload(begins);
    ASSERT_TRUE(lengths_on.fill(0xff).ok());
    if (!paged) {
      ASSERT_TRUE(begins_on.fill(0xff).ok());
    }
    const CudaStream stream = CudaStream::create().value();
    const Status status = run_append_kv({.dtype = dtype,
                                         .batch = batch,
                                         .num_heads = heads,
                                         .num_heads_kv = heads_kv,
                                         .head_dim = dim,
                                         .head_dim_v = dim_v,
                                         .cache_seqlens = held_on.as<int32_t>(),
                                         .cache_leftpad = pads_on.as<int32_t>(),
                                         .cache_batch_idx = paged ? nullptr : entries_on.as<int32_t>(),
                                         .entry_rows = capacity,
                                         .seqlens_k_out = lengths_on.as<int32_t>(),
                                         .begins_out = paged ? nullptr : begins_on.as<int32_t>(),
                                         .k_new = k_on.data(),
                                         .v_new = v_on.data(),
                                         .k_new_batch_stride = 4 * k_size,
                                         .k_new_row_stride = k_size,
                                         .k_new_head_stride = dim,
                                         .v_new_batch_stride = 4 * v_size,
                                         .v_new_row_stride = v_size,
                                         .v_new_head_stride = dim_v,
                                         .cu_seqlens_new = ragged ? cu_on.as<int32_t>() : nullptr,
                                         .seqlen_new = 4,
                                         .total_new = total + more,
                                         .k_cache = k_cache.data(),
                                         .v_cache = v_cache.data(),
                                         .k_page_stride = page_size * k_size,
                                         .k_row_stride = k_size,
                                         .k_head_stride = dim,
                                         .v_page_stride = page_size * v_size,
                                         .v_row_stride = v_size,
                                         .v_head_stride = dim_v,
                                         .page_table = paged ? table_on.as<int32_t>() : nullptr,
                                         .page_table_stride = pages_each,
                                         .page_size = page_size,
                                         .pages_per_request = pages_each,
                                         .rotary_cos = cosines_on.data(),
                                         .rotary_sin = sines_on.data(),
                                         .rotary_seqlens = first_on.as<int32_t>(),
                                         .rotary_rows = kRows,
                                         .rotary_dim = rotary_dim,
                                         .rotary_interleaved = interleaved,
                                         .rotate_queries_by_row = by_row,
                                         .q = q_on.data(),
                                         .q_out = q_out.data(),
                                         .q_batch_stride = 4 * q_size,
                                         .q_row_stride = q_size,
                                         .q_head_stride = dim,
                                         .cu_seqlens_q = ragged ? cu_on.as<int32_t>() : nullptr,
                                         .seqlen_q = 4,
                                         .total_q = total + more},
                                        stream.get());
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(stream.synchronize().ok());
    EXPECT_EQ(download(lengths_on), lengths);
    EXPECT_EQ(download(begins_on), begins);
    EXPECT_EQ(download(v_cache, dtype), v_expected);
    const float digit = dtype == DType::kF16 ? 1.0f / 1024 : 1.0f / 128;
    const auto expect_near = [&](const std::vector<float>& found, const std::vector<float>& expected) {
      ASSERT_EQ(found.size(), expected.size());
      for (size_t i = 0; i < found.size(); ++i) {
        ASSERT_NEAR(found[i], expected[i], 1e-5 + digit * std::abs(expected[i])) << "element " << i;
      }
    };
    expect_near(download(k_cache, dtype), k_expected);
    expect_near(download(q_out, dtype), q_expected);
  }
}

TEST(AppendKvChecks, NamesTheFieldThatIsWrong) {
  const auto message = [](const AppendKvParams& params) {
    return std::string(run_append_kv(params, nullptr).message());
  };
  EXPECT_EQ(message({.dtype = DType::kF32}), "append_kv: dtype: expected float16 or bfloat16, found float32");
  EXPECT_EQ(message({.batch = -1}), "append_kv: batch: expected at least 0, found -1");
  EXPECT_EQ(message({.head_dim = 60}),
            "append_kv: head_dim, head_dim_v and strides: expected multiples of 8, found 60");
  EXPECT_EQ(message({.head_dim = 64, .rotary_dim = 40}),
            "append_kv: rotary_dim: expected a multiple of 16 up to head_dim = 64, found 40");
  EXPECT_EQ(message({}), "");  // nothing to do
}

}  // namespace
}  // namespace onepass
