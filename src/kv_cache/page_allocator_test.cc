#include "kv_cache/page_allocator.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "base/check.h"
#include "kv_cache/request_table.h"

namespace onepass {
namespace {

TEST(PageAllocator, NeverHandsOutPageZeroAndRefusesWhenExhausted) {
  PageAllocator allocator(4);
  EXPECT_EQ(allocator.capacity(), 3);
  std::vector<PageId> pages;
  EXPECT_TRUE(allocator.allocate(0, 2, pages));
  EXPECT_FALSE(allocator.allocate(1, 2, pages));
  EXPECT_EQ(pages.size(), 2u);
  EXPECT_EQ(allocator.num_free(), 1);
  EXPECT_TRUE(allocator.allocate(1, 1, pages));
  EXPECT_EQ(std::set<PageId>(pages.begin(), pages.end()), (std::set<PageId>{1, 2, 3}));
}

TEST(PageAllocator, ThrowsWhenPagesAreFreedByAnotherOrTwice) {
  PageAllocator allocator(4);
  std::vector<PageId> pages;
  ASSERT_TRUE(allocator.allocate(7, 1, pages));
  EXPECT_THROW(allocator.free(8, pages), InvariantError);
  allocator.free(7, pages);
  EXPECT_THROW(allocator.free(7, pages), InvariantError);
  EXPECT_THROW(allocator.free_from_prefix_cache(pages), InvariantError);
}

TEST(PageAllocator, CheckNamesLeaksDoubleUseAndBadIds) {
  PageAllocator allocator(6);
  RequestTable table(2, 4);
  const int a = table.acquire();
  const int b = table.acquire();
  std::vector<PageId> pages;
  ASSERT_TRUE(allocator.allocate(a, 2, pages));
  // Leaked: owned on the books, in no row.
  EXPECT_EQ(allocator.check(table).size(), 2u);
  table.append(a, pages);
  EXPECT_TRUE(allocator.check(table).empty());
  // Read by another request without sharing, and a page id that no pool has.
  table.append(b, std::vector<PageId>{pages[0], 77});
  const auto violations = allocator.check(table);
  ASSERT_EQ(violations.size(), 2u);
  EXPECT_EQ(violations[0].page, 77);
  EXPECT_EQ(violations[1].page, pages[0]);
  EXPECT_NE(violations[1].message.find("owned by 2 requests"), std::string::npos) << violations[1].message;
  // Isolation takes the page out of circulation and silences nothing else.
  allocator.isolate(violations);
  EXPECT_EQ(allocator.capacity(), 4);
  table.truncate(b, 0);
  EXPECT_TRUE(allocator.check(table).empty());
  allocator.free(a, table.pages(a));
  table.truncate(a, 0);
  EXPECT_TRUE(allocator.check(table).empty());
  EXPECT_EQ(allocator.num_free(), 4);
}

// Random allocations, frees, shares and evictions against plain sets.
TEST(PageAllocator, RandomOperationsKeepEveryPageInOneState) {
  constexpr int kPages = 40;
  constexpr int kRequests = 6;
  std::mt19937 random(20240611);
  const auto draw = [&](int n) { return static_cast<int>(random() % n); };
  PageAllocator allocator(kPages);
  RequestTable table(kRequests, kPages);
  std::map<int, std::vector<PageId>> owned;  // slot -> its own pages
  std::vector<PageId> cached;  // held by the prefix cache; borrowed by no one in this test once listed here
  for (int step = 0; step < 20000; ++step) {
    switch (draw(5)) {
      case 0: {
        const int slot = table.acquire();
        EXPECT_EQ(slot < 0, owned.size() == kRequests);
        if (slot >= 0) owned[slot];
        break;
      }
      case 1:
        if (!owned.empty()) {
          auto& [slot, pages] = *std::next(owned.begin(), draw(static_cast<int>(owned.size())));
          const int count = draw(8);
          std::vector<PageId> fresh;
          const bool fits = count <= allocator.num_free();
          ASSERT_EQ(allocator.allocate(slot, count, fresh), fits);
          table.append(slot, fresh);
          pages.insert(pages.end(), fresh.begin(), fresh.end());
        }
        break;
      case 2:
        if (!owned.empty()) {
          auto it = std::next(owned.begin(), draw(static_cast<int>(owned.size())));
          allocator.free(it->first, it->second);
          table.truncate(it->first, 0);
          table.release(it->first);
          owned.erase(it);
        }
        break;
      case 3:
        if (!owned.empty()) {  // a request ends and leaves its pages to the prefix cache
          auto it = std::next(owned.begin(), draw(static_cast<int>(owned.size())));
          allocator.move_to_prefix_cache(it->first, it->second);
          cached.insert(cached.end(), it->second.begin(), it->second.end());
          table.truncate(it->first, 0);
          table.release(it->first);
          owned.erase(it);
        }
        break;
      case 4:
        if (!cached.empty()) {
          const PageId victim = cached[draw(static_cast<int>(cached.size()))];
          allocator.free_from_prefix_cache(std::vector<PageId>{victim});
          std::erase(cached, victim);
        }
        break;
    }
    const auto violations = allocator.check(table, cached);
    ASSERT_TRUE(violations.empty()) << "step " << step << ": " << violations[0].message;
    size_t in_use = cached.size();
    for (const auto& [slot, pages] : owned) in_use += pages.size();
    ASSERT_EQ(allocator.num_free() + in_use, static_cast<size_t>(allocator.capacity()));
  }
}

TEST(RequestTable, RowsGrowShrinkAndMapTokensToSlots) {
  RequestTable table(2, 3);
  const int slot = table.acquire();
  table.append(slot, std::vector<PageId>{9}, /*shared=*/true);
  table.append(slot, std::vector<PageId>{4, 2});
  EXPECT_EQ(table.num_shared_pages(slot), 1);
  EXPECT_EQ(table.token_slot(slot, 0, 16), 9 * 16);
  EXPECT_EQ(table.token_slot(slot, 33, 16), 2 * 16 + 1);
  EXPECT_THROW(table.token_slot(slot, 48, 16), InvariantError);
  EXPECT_THROW(table.append(slot, std::vector<PageId>{1}), InvariantError);
  EXPECT_THROW(table.release(slot), InvariantError);
  table.truncate(slot, 1);
  EXPECT_EQ(table.data()[slot * 3 + 1], RequestTable::kNoPage);
  table.truncate(slot, 0);
  table.release(slot);
  EXPECT_EQ(table.num_used(), 0);
}

}  // namespace
}  // namespace onepass
