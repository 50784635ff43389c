#include "engine/memory_budget.h"

#include <gtest/gtest.h>

#include <random>

namespace onepass {
namespace {

constexpr Device kGpu = {.kind = DeviceKind::kCuda};

TEST(MemoryBudgetTest, ThePagesThatAreAskedFor) {
  EXPECT_EQ(*count_kv_pages({.page_size = 64, .context_length = 100, .max_requests = 3}, 1000, {.total = 1}), 7);
  EXPECT_EQ(*count_kv_pages({.page_size = 64, .context_length = 100, .kv_tokens = 129}, 1000, {.total = 1}), 4);
  EXPECT_EQ(*count_kv_pages({.device = kGpu, .page_size = 1, .context_length = 9, .kv_tokens = 5}, 1000, {}), 6);
  EXPECT_EQ(
      count_kv_pages({.page_size = 1, .context_length = 9, .kv_tokens = int64_t{1} << 30}, 1, {}).status().message(),
      "KV cache: 1073741825 pages of 1 tokens are more than can be numbered");
}

// Of what the fraction leaves, every page that fits is taken, the dummy request's among them, and no more than all
// requests can need.
TEST(MemoryBudgetTest, AGpusCacheFillsTheFraction) {
  std::mt19937 random(1);
  for (int round = 0; round < 1000; ++round) {
    const ModelRunnerOptions options{.device = kGpu,
                                     .page_size = 1 << random() % 9,
                                     .context_length = 1 + static_cast<int>(random() % 5000),
                                     .max_requests = 1 + static_cast<int>(random() % 20),
                                     .gpu_memory_fraction = 0.01 * static_cast<double>(1 + random() % 100)};
    const int64_t page = 1 + random() % 100'000;
    const DeviceMemory memory{.total = 100'000'000, .used = static_cast<int64_t>(random() % 100'000'000)};
    const double room =
        options.gpu_memory_fraction * static_cast<double>(memory.total) - static_cast<double>(memory.used);
    const int all = options.max_requests * pages_of_request(options) + 1;
    const StatusOr<int> pages = count_kv_pages(options, page, memory);
    if (!pages.ok()) {
      EXPECT_LT(room, static_cast<double>(2 * page));
      EXPECT_TRUE(absl::IsResourceExhausted(pages.status()));
      continue;
    }
    EXPECT_LE(*pages, all);
    EXPECT_GE(*pages, 2);
    EXPECT_LE(static_cast<double>(*pages * page), room);
    if (*pages < all) {
      EXPECT_GT(static_cast<double>((*pages + 1) * page), room);
    }
  }
}

TEST(MemoryBudgetTest, SaysWhatWouldFit) {
  const ModelRunnerOptions options{.device = kGpu, .page_size = 16, .context_length = 16, .gpu_memory_fraction = 0.5};
  EXPECT_EQ(count_kv_pages(options, 100, {.total = 10'000, .used = 4'850}).status().message(),
            "KV cache: expected room for one page of 16 tokens (100 bytes) beside weights, workspace, graphs and other "
            "programs (4850 bytes) in 0.5 of the GPU's 10000 bytes; a memory fraction of 0.505 has it");
  EXPECT_NE(count_kv_pages(options, 100, {.total = 10'000, .used = 9'900}).status().message().find("does not fit"),
            std::string_view::npos);
}

TEST(MemoryBudgetTest, ACacheOfAGivenSizeKeepsToTheFraction) {
  ModelRunnerOptions options{.device = kGpu, .kv_tokens = 640, .gpu_memory_fraction = 0.5};
  EXPECT_TRUE(check_memory_fraction(options, {.total = 1000, .used = 500}).ok());
  EXPECT_EQ(check_memory_fraction(options, {.total = 1000, .used = 501}).message(),
            "memory: expected weights, workspace, graphs, other programs and a KV cache of 640 tokens in 0.5 of the "
            "GPU's 1000 bytes, found 501; a memory fraction of 0.501 has it");
  options.kv_tokens = 0;
  EXPECT_TRUE(check_memory_fraction(options, {.total = 1000, .used = 999}).ok());
}

TEST(MemoryBudgetTest, APageTableOfGigabytesIsRefused) {
  EXPECT_TRUE(check_page_table({.page_size = 16, .context_length = 131'072, .max_requests = 4096}).ok());
  EXPECT_EQ(check_page_table({.page_size = 1, .context_length = 131'072, .max_requests = 4096}).message(),
            "page table: expected at most 128 MiB, found 2048 for 4096 requests of 131072 tokens in pages of 1: larger "
            "pages, fewer requests or a shorter context take less");
}

}  // namespace
}  // namespace onepass
