// Who computes what in the kernel for all layers: everything once, and parts where those who merge them look.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <tuple>

#include "models/cuda/layer_stack_kernel.h"
#include "models/cuda/layer_stack_layout.cuh"

namespace onepass {
namespace {

using namespace layer_stack;

StackShape qwen3_06b() {
  return {.num_layers = 28,
          .hidden_size = 1024,
          .intermediate_size = 3072,
          .num_heads = 16,
          .num_kv_heads = 8,
          .head_dim = 128,
          .page_size = 64};
}
GpuInfo hopper() {
  return {.compute_capability = 90, .multiprocessors = 132, .shared_memory_bytes = 232448, .usable = true};
}

TEST(LayerStackPlanTest, CutsProductsIntoTilesThatAllBlocksShare) {
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    StackShape shape = qwen3_06b();
    shape.hidden_size = 64 * (1 + static_cast<int>(random() % 64));
    shape.intermediate_size = 64 * (1 + static_cast<int>(random() % 250));
    const StackPlan plan = plan_stack(shape, hopper());
    if (plan.max_rows == 0) continue;
    const Products products(shape, plan.blocks);
    for (const Product& product : products.of) {
      int tiles = 0, chunks = 0;
      for (int block = 0; block < plan.blocks; ++block) tiles += product.tiles_of(block);
      for (int unit = 0; unit < product.units; ++unit) {
        chunks += product.chunks_of(unit);
        EXPECT_LE(product.chunks_of(unit), kUnitChunks);
        EXPECT_GT(product.chunks_of(unit), 0);
      }
      EXPECT_EQ(tiles * kTileRows, product.rows);
      EXPECT_EQ(chunks * kChunk, product.cols);
    }
    EXPECT_GT(products.of[kGateUp].tiles_of(plan.blocks - 1), 0) << "every block takes part";
    EXPECT_EQ(products.of[kO].of_block, products.of[kDown].of_block) << "the residual stream stays where it is";
    EXPECT_LE(SharedLayout(shape, plan.max_rows, plan.blocks, plan.ring_slots).bytes, hopper().shared_memory_bytes);
  }
}

TEST(LayerStackPlanTest, TakesTheShapesThatTheKernelIsFor) {
  EXPECT_GE(plan_stack(qwen3_06b(), hopper()).max_rows, 4);
  EXPECT_EQ(plan_stack(qwen3_06b(), hopper()).blocks, 128);
  StackShape llama = qwen3_06b();
  llama.hidden_size = 4096, llama.intermediate_size = 14336, llama.num_heads = 32;
  EXPECT_GE(plan_stack(llama, hopper()).max_rows, 1);
  const auto refused = [&](auto change) {
    StackShape shape = qwen3_06b();
    GpuInfo gpu = hopper();
    change(shape, gpu);
    return plan_stack(shape, gpu).max_rows == 0;
  };
  EXPECT_TRUE(refused([](StackShape&, GpuInfo& gpu) { gpu.compute_capability = 80; }));
  EXPECT_TRUE(refused([](StackShape& shape, GpuInfo&) { shape.head_dim = 96; }));
  EXPECT_TRUE(refused([](StackShape& shape, GpuInfo&) { shape.num_heads = 72; }));
  EXPECT_TRUE(refused([](StackShape& shape, GpuInfo&) { shape.hidden_size = 1000; }));
  EXPECT_TRUE(refused([](StackShape& shape, GpuInfo&) { shape.hidden_size = 16384; }));
  EXPECT_TRUE(refused([](StackShape& shape, GpuInfo&) { shape.page_size = 8; }));
  EXPECT_FALSE(refused([](StackShape& shape, GpuInfo&) { shape.page_size = 48; }));
}

// Every key that a request's new token sees is one block's for each KV head, and every part lies where it is looked
// for.
TEST(LayerStackPlanTest, SharesAttentionSoThatEveryKeyIsSeenOnce) {
  std::mt19937 random(2);
  const auto draw = [&](int n) { return static_cast<int>(random() % n); };
  for (int i = 0; i < 2000; ++i) {
    const int rows = 1 + draw(kMostRows), kv_heads = 1 << draw(4), blocks = kv_heads + draw(132);
    const int window = draw(3) == 0 ? draw(300) : -1;
    int seqlens[kMostRows];
    for (int& seqlen : seqlens) seqlen = 1 + draw(draw(4) == 0 ? 20000 : 300);
    std::map<std::tuple<int, int, int>, int> seen;                    // head, row and block of keys
    std::map<std::tuple<int, int>, int> last;                         // head and row
    std::map<std::tuple<int, int, int>, std::pair<int, int>> places;  // head, row and part: block and slot
    std::map<std::tuple<int, int>, AttentionItem> any;
    for (int block = 0; block < blocks; ++block) {
      const AttentionShare share(seqlens, rows, window, kv_heads, block, blocks);
      std::set<int> slots;
      for (AttentionItems items(share, seqlens, rows, window); items.next();) {
        const AttentionItem& item = items.item;
        for (int b = item.first_block; b < item.end_block; ++b) ++seen[{share.head, item.row, b}];
        last[{share.head, item.row}] += item.is_last;
        if (item.first_block < item.end_block) {
          EXPECT_LT(item.low, item.high) << "blocks without a key that counts";
        }
        if (item.parts == 1) continue;
        EXPECT_TRUE(slots.insert(item.slot).second) << "two parts of a block in one place";
        EXPECT_TRUE(item.slot == 0 || item.slot == 1);
        EXPECT_TRUE(places.try_emplace({share.head, item.row, item.part}, block, item.slot).second);
        any[{share.head, item.row}] = item;
      }
    }
    for (int head = 0; head < kv_heads; ++head) {
      for (int row = 0; row < rows; ++row) {
        EXPECT_EQ((last[{head, row}]), 1);
        const int low = AttentionShare::low_key(seqlens[row], window), high = seqlens[row] - 1;
        for (int b = low / kKeys; low < high && b * kKeys < high; ++b) EXPECT_EQ((seen[{head, row, b}]), 1);
      }
    }
    for (const auto& [of, item] : any) {
      const auto [head, row] = of;
      for (int part = 0; part < item.parts; ++part) {
        const std::pair expected((item.first_worker + part) * kv_heads + head, part == 0 ? item.first_slot : 0);
        ASSERT_TRUE((places.contains({head, row, part})));
        EXPECT_EQ((places[{head, row, part}]), expected);
      }
    }
  }
}

}  // namespace
}  // namespace onepass
