// The GPU's fused kernel against the CPU's run_rope and run_kv_store, and with a norm against the norm's own kernel.
#include "kernels/cuda/rope_store_kv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cuda/cuda_kernel_test.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/kv_store.h"
#include "kernels/rope.h"
#include "tensor/cuda/cuda_stream.h"

namespace onepass {
namespace {

class RopeStoreKvTest : public CudaKernelTest {
 protected:
  ThreadPool pool_{1};
};

TEST_F(RopeStoreKvTest, AgreesWithTheCpu) {
  constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  constexpr int kPageSizes[] = {1, 3, 16, 64};
  for (int round = 0; round < 60; ++round) {
    const DType dtype = kDTypes[rng_() % 3], pool_dtype = kDTypes[rng_() % 3];
    const int heads_kv = 1 + static_cast<int>(rng_() % 3), heads = heads_kv * (1 + static_cast<int>(rng_() % 5));
    const bool odd = rng_() % 4 == 0;  // nothing is a multiple of 16 bytes
    const int dim = odd ? 38 : 16 * (1 + static_cast<int>(rng_() % 8)), dim_v = odd ? 21 : dim;
    const int rotary_dim = odd ? 22 : rng_() % 4 == 0 ? 16 * (dim / 32) : rng_() % 5 == 0 ? 0 : dim;
    const int page_size = kPageSizes[rng_() % 4];
    const int64_t tokens = 1 + static_cast<int64_t>(rng_() % 70), slots = (tokens * 2 / page_size + 1) * page_size;
    const int64_t padding = odd ? 3 : 16 * static_cast<int64_t>(rng_() % 2);
    const int64_t q_stride = heads * dim + padding, k_stride = heads_kv * dim + padding;
    const int64_t v_stride = heads_kv * dim_v + padding;
    SCOPED_TRACE(testing::Message() << dtype << " to " << pool_dtype << ", heads " << heads << "/" << heads_kv
                                    << ", head_dim " << dim << "/" << dim_v << ", rotary_dim " << rotary_dim
                                    << ", tokens " << tokens << ", page_size " << page_size);

    std::vector<double> inv_freq(rotary_dim / 2);
    for (size_t i = 0; i < inv_freq.size(); ++i) inv_freq[i] = std::pow(500000.0, -2.0 * i / rotary_dim);
    std::vector<int32_t> positions(tokens);
    for (int32_t& position : positions) position = static_cast<int32_t>(rng_() % 131072);
    std::vector<int64_t> slot_of(slots);
    std::iota(slot_of.begin(), slot_of.end(), int64_t{0});
    std::shuffle(slot_of.begin(), slot_of.end(), rng_);
    slot_of.resize(tokens);
    std::vector<float> q = random_values(tokens * q_stride, dtype), k = random_values(tokens * k_stride, dtype);
    const std::vector<float> v = random_values(tokens * v_stride, dtype);
    const CudaBuffer q_device = upload(q, dtype), k_device = upload(k, dtype), v_device = upload(v, dtype);
    const float attention_factor = round % 2 == 0 ? 1.0f : 1.25f;

    // On the CPU, in float32; tokens without a slot go to one of their own behind the pool.
    const Stream stream{.pool = &pool_};
    for (auto [x, stride, n] : {std::tuple{&q, q_stride, heads}, std::tuple{&k, k_stride, heads_kv}}) {
      run_rope({.x = x->data(),
                .row_stride = stride,
                .num_heads = n,
                .head_dim = dim,
                .rotary_dim = rotary_dim,
                .num_tokens = tokens,
                .positions = positions.data(),
                .inv_freq = inv_freq.data(),
                .attention_factor = attention_factor},
               stream);
    }
    std::vector<int64_t> cpu_slots = slot_of;
    for (int64_t t = 0; t < tokens; ++t) {
      if (rng_() % 5 == 0) slot_of[t] = -1, cpu_slots[t] = slots;
    }
    std::vector<float> k_pool((slots + 1) * heads_kv * dim, 7.0f), v_pool((slots + 1) * heads_kv * dim_v, 7.0f);
    run_kv_store({.k = k.data(),
                  .k_row_stride = k_stride,
                  .v = v.data(),
                  .v_row_stride = v_stride,
                  .num_tokens = tokens,
                  .num_kv_heads = heads_kv,
                  .head_dim = dim,
                  .head_dim_v = dim_v,
                  .slots = cpu_slots.data(),
                  .k_pool = k_pool.data(),
                  .v_pool = v_pool.data(),
                  .dtype = DType::kF32},
                 stream);
    k_pool.resize(slots * heads_kv * dim);
    v_pool.resize(slots * heads_kv * dim_v);

    const CudaBuffer k_pool_device = upload(std::vector<float>(k_pool.size(), 7.0f), pool_dtype);
    const CudaBuffer v_pool_device = upload(std::vector<float>(v_pool.size(), 7.0f), pool_dtype);
    const bool wide_slots = round % 3 != 0;
    const CudaBuffer slots_device =
        wide_slots ? upload(slot_of) : upload(std::vector<int32_t>(slot_of.begin(), slot_of.end()));
    const CudaBuffer positions_device = upload(positions), inv_freq_device = upload(inv_freq);
    ASSERT_TRUE(CudaStream::create().ok());
    const CudaStream gpu = CudaStream::create().value();
    const Status status = run_rope_store_kv({.dtype = dtype,
                                             .q = q_device.data(),
                                             .q_row_stride = q_stride,
                                             .q_head_stride = dim,
                                             .q_out = q_device.data(),
                                             .q_out_row_stride = q_stride,
                                             .q_out_head_stride = dim,
                                             .k = k_device.data(),
                                             .k_row_stride = k_stride,
                                             .k_head_stride = dim,
                                             .v = v_device.data(),
                                             .v_row_stride = v_stride,
                                             .v_head_stride = dim_v,
                                             .num_tokens = tokens,
                                             .num_heads = heads,
                                             .num_heads_kv = heads_kv,
                                             .head_dim = dim,
                                             .head_dim_v = dim_v,
                                             .rotary_dim = rotary_dim,
                                             .positions = positions_device.as<int32_t>(),
                                             .inv_freq = inv_freq_device.as<double>(),
                                             .attention_factor = attention_factor,
                                             .slots = slots_device.data(),
                                             .slot_dtype = wide_slots ? DType::kI64 : DType::kI32,
                                             .page_size = page_size,
                                             .pool_dtype = pool_dtype,
                                             .k_pool = k_pool_device.data(),
                                             .k_pool_page_stride = int64_t{page_size} * heads_kv * dim,
                                             .k_pool_row_stride = heads_kv * dim,
                                             .k_pool_head_stride = dim,
                                             .v_pool = v_pool_device.data(),
                                             .v_pool_page_stride = int64_t{page_size} * heads_kv * dim_v,
                                             .v_pool_row_stride = heads_kv * dim_v,
                                             .v_pool_head_stride = dim_v},
                                            gpu.get());
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(gpu.synchronize().ok());
    expect_near(download(q_device, dtype, q.size()), q, dtype);
    expect_near(download(k_pool_device, pool_dtype, k_pool.size()), k_pool, pool_dtype);
    expect_near(download(v_pool_device, pool_dtype, v_pool.size()), v_pool, pool_dtype);
    if (HasFatalFailure()) return;
  }
}

// Bit for bit where the heads' sums are added up in the same order: where pairs of pieces of 8 elements are a power of
// two.
TEST_F(RopeStoreKvTest, NormsHeadsAsTheNormDoes) {
  struct Shape {
    int dim, rotary_dim;
    bool same_order;
  };
  const Shape shapes[] = {{32, 32, true},   {64, 64, true},   {128, 128, true}, {256, 256, true},
                          {128, 64, false}, {128, 0, false},  {80, 80, false},  {96, 96, false},
                          {38, 22, false},  {576, 64, false}, {20, 20, false}};
  for (int round = 0; round < 80; ++round) {
    const DType dtype = one_of({DType::kF32, DType::kF16, DType::kBF16});
    const DType pool_dtype = one_of({DType::kF32, DType::kF16, DType::kBF16});
    const Shape shape = shapes[rng_() % std::size(shapes)];
    const int dim = shape.dim, heads_kv = one_of({1, 2, 8}), heads = heads_kv * one_of({1, 4, 5}), page_size = 16;
    const int64_t tokens = one_of<int64_t>({1, 2, 33, 300}), slots = (tokens + 15) / 16 * 16;
    const int64_t stride = int64_t{heads + 2 * heads_kv} * dim;
    const bool with_q = rng_() % 4 != 0, with_k = !with_q || rng_() % 4 != 0;
    SCOPED_TRACE(testing::Message() << dtype << " to " << pool_dtype << ", heads " << heads << "/" << heads_kv
                                    << ", head_dim " << dim << ", rotary_dim " << shape.rotary_dim << ", tokens "
                                    << tokens << (with_q ? ", q" : "") << (with_k ? ", k" : ""));
    std::vector<double> inv_freq(shape.rotary_dim / 2);
    for (size_t i = 0; i < inv_freq.size(); ++i) inv_freq[i] = std::pow(1e6, -2.0 * i / shape.rotary_dim);
    std::vector<int32_t> positions(tokens), slot_of(tokens);
    for (int32_t& position : positions) position = static_cast<int32_t>(rng_() % 40000);
    std::iota(slot_of.begin(), slot_of.end(), 0);
    std::shuffle(slot_of.begin(), slot_of.end(), rng_);
    const std::vector<float> qkv = random_values(tokens * stride, dtype);
    const CudaBuffer q_norm = upload(random_values(dim, DType::kF32));
    const CudaBuffer k_norm = upload(random_values(dim, DType::kF32));
    const CudaBuffer positions_device = upload(positions), slots_device = upload(slot_of);
    const CudaBuffer inv_freq_device = upload(inv_freq);
    const auto pool_size = static_cast<size_t>(slots * heads_kv * dim);
    constexpr float kEps = 1e-6f;

    std::vector<float> results[2][3];  // apart and in one: q, k and v
    for (const bool fused : {false, true}) {
      const CudaBuffer data = upload(qkv, dtype);
      const CudaBuffer k_pool = upload(std::vector<float>(pool_size, 7.0f), pool_dtype);
      const CudaBuffer v_pool = upload(std::vector<float>(pool_size, 7.0f), pool_dtype);
      const auto at = [&](int64_t elements) {
        return data.as<std::byte>() + elements * static_cast<int64_t>(size_of(dtype));
      };
      void* const q = at(0);
      void* const k = at(int64_t{heads} * dim);
      const auto norm = [&](void* x, int count, const CudaBuffer& weight) {
        return run_rms_norm_cuda({.x = x,
                                  .x_dtype = dtype,
                                  .x_group_stride = stride,
                                  .x_row_stride = dim,
                                  .weight = weight.as<float>(),
                                  .eps = kEps,
                                  .out = x,
                                  .out_dtype = dtype,
                                  .out_group_stride = stride,
                                  .out_row_stride = dim,
                                  .num_groups = tokens,
                                  .rows = count,
                                  .cols = dim},
                                 stream_->get());
      };
      const Status q_normed = !fused && with_q ? norm(q, heads, q_norm) : ok_status();
      const Status k_normed = !fused && with_k ? norm(k, heads_kv, k_norm) : ok_status();
      ASSERT_TRUE(q_normed.ok() && k_normed.ok()) << q_normed << ", " << k_normed;
      const Status status = run_rope_store_kv({.dtype = dtype,
                                               .q = q,
                                               .q_row_stride = stride,
                                               .q_head_stride = dim,
                                               .q_out = q,
                                               .q_out_row_stride = stride,
                                               .q_out_head_stride = dim,
                                               .k = k,
                                               .k_row_stride = stride,
                                               .k_head_stride = dim,
                                               .v = at(int64_t{heads + heads_kv} * dim),
                                               .v_row_stride = stride,
                                               .v_head_stride = dim,
                                               .num_tokens = tokens,
                                               .num_heads = heads,
                                               .num_heads_kv = heads_kv,
                                               .head_dim = dim,
                                               .head_dim_v = dim,
                                               .q_norm = fused && with_q ? q_norm.as<float>() : nullptr,
                                               .k_norm = fused && with_k ? k_norm.as<float>() : nullptr,
                                               .norm_eps = kEps,
                                               .rotary_dim = shape.rotary_dim,
                                               .positions = positions_device.as<int32_t>(),
                                               .inv_freq = inv_freq_device.as<double>(),
                                               .slots = slots_device.data(),
                                               .slot_dtype = DType::kI32,
                                               .page_size = page_size,
                                               .pool_dtype = pool_dtype,
                                               .k_pool = k_pool.data(),
                                               .k_pool_page_stride = int64_t{page_size} * heads_kv * dim,
                                               .k_pool_row_stride = int64_t{heads_kv} * dim,
                                               .k_pool_head_stride = dim,
                                               .v_pool = v_pool.data(),
                                               .v_pool_page_stride = int64_t{page_size} * heads_kv * dim,
                                               .v_pool_row_stride = int64_t{heads_kv} * dim,
                                               .v_pool_head_stride = dim},
                                              stream_->get());
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(stream_->synchronize().ok());
      results[fused][0] = download(data, dtype, tokens * stride);
      results[fused][1] = download(k_pool, pool_dtype, static_cast<int64_t>(pool_size));
      results[fused][2] = download(v_pool, pool_dtype, static_cast<int64_t>(pool_size));
    }
    // The k that lies beside q is left alone by the one kernel alone; what counts of it is in the pool.
    for (int64_t i = 0; i < tokens * stride; ++i) {
      if (i % stride >= int64_t{heads} * dim) results[0][0][i] = results[1][0][i] = 0.0f;
    }
    for (int which = 0; which < 3; ++which) {
      const std::vector<float>&expected = results[0][which], &found = results[1][which];
      if (shape.same_order && dtype != DType::kF32) {
        ASSERT_EQ(found, expected) << "of q, k, v: " << which;
        continue;
      }
      // A last digit of the norm's result that falls otherwise, on its way through the rotation.
      const double digit = dtype == DType::kF32 && pool_dtype == DType::kF32     ? 0x1p-21
                           : dtype == DType::kBF16 || pool_dtype == DType::kBF16 ? 0x1p-7
                                                                                 : 0x1p-10;
      for (size_t i = 0; i < found.size(); ++i) {
        ASSERT_NEAR(found[i], expected[i], digit * (4.0 + std::abs(expected[i]))) << which << ", element " << i;
      }
    }
  }
}

TEST(RopeStoreKv, NamesWhatIsWrong) {
  RopeStoreKvParams params{.num_heads_kv = 1, .head_dim = 8, .head_dim_v = 8, .rotary_dim = 3, .page_size = 1};
  EXPECT_EQ(run_rope_store_kv(params, nullptr).message(),
            "rope_store_kv: rotary_dim: expected an even number from 0 to head_dim = 8, found 3");
  params.rotary_dim = 0;
  params.slot_dtype = DType::kF32;
  EXPECT_EQ(run_rope_store_kv(params, nullptr).message(),
            "rope_store_kv: slot_dtype: expected int32 or int64, found float32");
}

}  // namespace
}  // namespace onepass
