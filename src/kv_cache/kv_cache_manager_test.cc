#include "kv_cache/kv_cache_manager.h"

#include <gtest/gtest.h>

#include <numeric>

namespace onepass {
namespace {

std::vector<int32_t> counting(int count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

// Its slot; -1 when all are in use.
int open(KvCacheManager& cache, std::span<const int32_t> tokens) {
  const auto opened = cache.open(tokens, "");
  return opened ? opened->slot : -1;
}

TEST(KvCacheManager, RepairTakesLostPagesOutOfUseAndKeepsTheRest) {
  RequestTable table(2, 8);
  KvCacheManager cache(table, 11, 4, /*prefix_caching=*/true);
  const std::vector<int32_t> tokens = counting(16);
  const int slot = open(cache, tokens);
  ASSERT_TRUE(cache.reserve(slot, 16));
  // Somebody forgets the sequence's last page.
  const PageId lost = table.pages(slot)[3];
  table.truncate(slot, 3);
  cache.close(slot, std::span(tokens).first(8));
  const int orphan = table.acquire();
  ASSERT_GE(orphan, 0);
  EXPECT_EQ(cache.num_cached(), 2);
  EXPECT_EQ(cache.check().size(), 1u);

  const std::vector<std::string> wrong = cache.repair();
  ASSERT_EQ(wrong.size(), 2u);
  EXPECT_TRUE(wrong[0].starts_with("page " + std::to_string(lost) + " is owned")) << wrong[0];
  EXPECT_EQ(wrong[1], "request slot " + std::to_string(orphan) + " is in use by nobody");
  EXPECT_EQ(cache.capacity(), 9);
  EXPECT_EQ(cache.num_free(), 9);
  EXPECT_EQ(cache.num_cached(), 0);
  EXPECT_TRUE(cache.check().empty());
  EXPECT_TRUE(cache.repair().empty());

  // All of it can be used, and no sequence gets the lost page.
  for (int i = 0; i < 2; ++i) {
    const int again = open(cache, tokens);
    ASSERT_TRUE(cache.reserve(again, i == 0 ? 32 : 4));
    for (const PageId page : table.pages(again)) EXPECT_NE(page, lost);
  }
  EXPECT_EQ(cache.num_free(), 0);
}

TEST(KvCacheManager, RepairFindsNothingInAHealthyCache) {
  RequestTable table(2, 8);
  KvCacheManager cache(table, 11, 4, /*prefix_caching=*/true);
  const std::vector<int32_t> tokens = counting(16);
  const int slot = open(cache, tokens);
  ASSERT_TRUE(cache.reserve(slot, 16));
  cache.close(slot, tokens);
  EXPECT_TRUE(cache.repair().empty());
  EXPECT_EQ(cache.num_cached(), 4);  // the prefix cache is kept
}

}  // namespace
}  // namespace onepass
