#include "engine/step_graphs.h"

#include <gtest/gtest.h>

#include "engine/batch.h"

namespace onepass {
namespace {

// `counts[i]` tokens of request i, whose last logits are wanted.
Batch batch_of(const std::vector<int>& counts) {
  RequestTable table(static_cast<int>(counts.size()), 64);
  Batch batch;
  for (const int count : counts) {
    const int slot = table.acquire();
    std::vector<PageId> pages(count);
    for (int i = 0; i < count; ++i) pages[i] = 7 + i;
    table.append(slot, pages);
    batch.add(slot, std::vector<int32_t>(count, 42).data(), count, 0, 1, table, 1);
  }
  return batch;
}

std::vector<int> decode_sizes(const StepGraphs& graphs) {
  std::vector<int> sizes;
  for (const StepShape& shape : graphs.shapes()) {
    if (shape.is_decode()) sizes.insert(sizes.begin(), shape.num_tokens);
  }
  return sizes;
}

TEST(StepGraphsTest, DecodesGrowByEightUpToTheLimit) {
  EXPECT_EQ(decode_sizes(StepGraphs(1, 8192)), (std::vector<int>{1}));
  EXPECT_EQ(decode_sizes(StepGraphs(3, 8192)), (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(decode_sizes(StepGraphs(20, 8192)), (std::vector<int>{1, 2, 4, 8, 16, 20}));
  EXPECT_EQ(decode_sizes(StepGraphs(4096, 8192)).back(), StepGraphs::kMostDecodes);
  EXPECT_EQ(decode_sizes(StepGraphs(20, 10)).back(), 10);
}

TEST(StepGraphsTest, TakesTheSmallestThatHoldsTheStep) {
  const StepGraphs graphs(300, 512);
  EXPECT_EQ(graphs.shape_for(batch_of({1})), (StepShape{1, 1}));
  EXPECT_EQ(graphs.shape_for(batch_of({1, 1, 1})), (StepShape{4, 4}));
  EXPECT_EQ(graphs.shape_for(batch_of(std::vector<int>(257, 1))), (StepShape{272, 272}));
  EXPECT_EQ(graphs.shape_for(batch_of(std::vector<int>(289, 1))), (StepShape{300, 300}));
  EXPECT_EQ(graphs.shape_for(batch_of(std::vector<int>(301, 1))), std::nullopt);
  EXPECT_EQ(graphs.shape_for(batch_of({5})), (StepShape{16, 8}));
  EXPECT_EQ(graphs.shape_for(batch_of({30, 20, 1})), (StepShape{64, 8}));
  EXPECT_EQ(graphs.shape_for(batch_of({60, 60, 9})), (StepShape{192, 8}));
  EXPECT_EQ(graphs.shape_for(batch_of({1, 30})), std::nullopt) << "decodes beside a prompt";
  EXPECT_EQ(graphs.shape_for(batch_of(std::vector<int>(8, 10))), std::nullopt) << "none is left for the padding";
  EXPECT_EQ(StepGraphs(300, 100).shape_for(batch_of({50, 50, 20})), std::nullopt);
  EXPECT_EQ(StepGraphs().shape_for(batch_of({1})), std::nullopt);
}

TEST(StepGraphsTest, PaddingIsOfPageZero) {
  Batch decodes = batch_of({1});
  decodes.pad({4, 4});
  EXPECT_EQ(decodes.num_requests(), 4);
  EXPECT_EQ(decodes.input_ids, (std::vector<int32_t>{42, 0, 0, 0}));
  EXPECT_EQ(decodes.out_cache_loc, (std::vector<int64_t>{7, 0, 0, 0}));
  EXPECT_EQ(decodes.cu_seqlens_q, (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(decodes.cache_seqlens, (std::vector<int32_t>{1, 1, 1, 1}));
  EXPECT_EQ(decodes.request_slots, (std::vector<int32_t>{0, -1, -1, -1}));
  EXPECT_EQ(decodes.output_rows, (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_TRUE(decodes.is_decode());

  Batch prompts = batch_of({3, 2});
  prompts.pad({16, 8});
  EXPECT_EQ(prompts.num_tokens(), 16);
  EXPECT_EQ(prompts.cu_seqlens_q, (std::vector<int32_t>{0, 3, 5, 16, 16, 16, 16, 16, 16}));
  EXPECT_EQ(prompts.cache_seqlens, (std::vector<int32_t>{3, 2, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(prompts.request_slots, (std::vector<int32_t>{0, 1, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(prompts.out_cache_loc[5], 0);
  EXPECT_EQ(prompts.output_rows, (std::vector<int32_t>{2, 4, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(prompts.max_seqlen_q, 16);
  EXPECT_FALSE(prompts.is_decode());

  RequestTable table(1, 4);
  EXPECT_EQ(table.pages_or_dummy(-1).size(), 1u);
  EXPECT_EQ(table.pages_or_dummy(-1)[0], 0);
}

}  // namespace
}  // namespace onepass
