// The GPU's fused kernel against the CPU's run_rope and run_kv_store.
#include "kernels/cuda/rope_store_kv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cuda/cuda_kernel_test.h"
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
