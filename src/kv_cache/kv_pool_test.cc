#include "kv_cache/kv_pool.h"

#include <gtest/gtest.h>

namespace onepass {
namespace {

KvPoolConfig small_config() {
  return {.num_layers = 3,
          .num_pages = 5,
          .page_size = 16,
          .num_kv_heads = 2,
          .head_dim = 8,
          .head_dim_v = 4,
          .dtype = DType::kF16};
}

TEST(KvPool, LaysPagesOutAsTheStridesSay) {
  auto pool = KvPool::create(small_config());
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_EQ(pool->config().bytes_per_token(), 3 * 2 * (8 + 4) * 2);
  EXPECT_EQ(pool->config().bytes_per_page(), 16 * 3 * 2 * (8 + 4) * 2);
  EXPECT_EQ(pool->k_page_stride(), 16 * 2 * 8);
  EXPECT_EQ(pool->v_page_stride(), 16 * 2 * 4);
  // Every element of every layer can be written, and none is shared.
  for (int layer = 0; layer < 3; ++layer) {
    for (int64_t i = 0; i < 5 * pool->k_page_stride(); ++i) store_float(pool->k(layer), DType::kF16, i, layer + 1.0f);
    for (int64_t i = 0; i < 5 * pool->v_page_stride(); ++i) store_float(pool->v(layer), DType::kF16, i, -layer - 1.0f);
  }
  for (int layer = 0; layer < 3; ++layer) {
    for (int64_t i = 0; i < 5 * pool->k_page_stride(); ++i)
      ASSERT_EQ(load_float(pool->k(layer), DType::kF16, i), layer + 1.0f);
    for (int64_t i = 0; i < 5 * pool->v_page_stride(); ++i)
      ASSERT_EQ(load_float(pool->v(layer), DType::kF16, i), -layer - 1.0f);
  }
}

TEST(KvPool, RefusesWhatMakesNoSense) {
  KvPoolConfig config = small_config();
  config.page_size = 0;
  EXPECT_EQ(KvPool::create(config).status().message(), "KV cache: page size: expected 1 to 256, found 0");
  config = small_config();
  config.head_dim = -3;
  EXPECT_EQ(KvPool::create(config).status().message(), "KV cache: head_dim: expected at least 1, found -3");
  config = small_config();
  config.dtype = DType::kI8;
  EXPECT_FALSE(KvPool::create(config).ok());
  config = small_config();
  config.num_pages = 1 << 30;
  config.head_dim = 1 << 24;
  EXPECT_EQ(KvPool::create(config).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace onepass
