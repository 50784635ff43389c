#include "engine/decode_graphs.h"

#include <gtest/gtest.h>

#include "engine/batch.h"

namespace onepass {
namespace {

TEST(DecodeGraphsTest, SizesGrowByEightUpToTheLimit) {
  EXPECT_EQ(DecodeGraphs(1).sizes(), (std::vector<int>{1}));
  EXPECT_EQ(DecodeGraphs(3).sizes(), (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(DecodeGraphs(20).sizes(), (std::vector<int>{1, 2, 4, 8, 16, 20}));
  EXPECT_EQ(DecodeGraphs(4096).sizes().back(), DecodeGraphs::kLargest);
}

TEST(DecodeGraphsTest, TakesTheSmallestThatHoldsTheRequests) {
  const DecodeGraphs graphs(20);
  EXPECT_EQ(graphs.size_for(1), 1);
  EXPECT_EQ(graphs.size_for(3), 4);
  EXPECT_EQ(graphs.size_for(9), 16);
  EXPECT_EQ(graphs.size_for(20), 20);
  EXPECT_EQ(graphs.size_for(21), std::nullopt);
  EXPECT_EQ(DecodeGraphs().size_for(1), std::nullopt);
}

TEST(DecodeGraphsTest, PaddingAddsRequestsOfPageZero) {
  RequestTable table(1, 4);
  const int slot = table.acquire();
  table.append(slot, std::vector<PageId>{7});
  Batch batch;
  const int32_t token = 42;
  batch.add(slot, &token, 1, 3, 1, table, 16);
  batch.pad(4);
  EXPECT_EQ(batch.num_requests(), 4);
  EXPECT_EQ(batch.input_ids, (std::vector<int32_t>{42, 0, 0, 0}));
  EXPECT_EQ(batch.positions, (std::vector<int32_t>{3, 0, 0, 0}));
  EXPECT_EQ(batch.out_cache_loc, (std::vector<int64_t>{7 * 16 + 3, 0, 0, 0}));
  EXPECT_EQ(batch.cu_seqlens_q, (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(batch.cache_seqlens, (std::vector<int32_t>{4, 1, 1, 1}));
  EXPECT_EQ(batch.request_slots, (std::vector<int32_t>{slot, -1, -1, -1}));
  EXPECT_EQ(batch.output_rows, (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(table.pages_or_dummy(-1).size(), 1u);
  EXPECT_EQ(table.pages_or_dummy(-1)[0], 0);
}

}  // namespace
}  // namespace onepass
