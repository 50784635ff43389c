#include "kernels/cuda/sample_plan.h"

#include <gtest/gtest.h>

namespace onepass {
namespace {

constexpr int64_t kScratch = 32 << 10;
constexpr int64_t kHopper = 227 << 10, kAmpere = 163 << 10;  // shared memory of a thread block

TEST(SamplePlan, SharesLargeVocabulariesAmongEightBlocks) {
  for (const int vocab_size : {32000, 128256, 151936, 262144}) {
    EXPECT_EQ(plan_sample(vocab_size, 8, kScratch, kHopper), (SamplePlan{.cluster = 8, .in_shared = true}));
  }
}

TEST(SamplePlan, TakesNoMoreBlocksThanHaveWork) {
  EXPECT_EQ(plan_sample(7, 8, kScratch, kHopper).cluster, 1);
  EXPECT_EQ(plan_sample(4095, 8, kScratch, kHopper).cluster, 1);
  EXPECT_EQ(plan_sample(4096, 8, kScratch, kHopper).cluster, 2);
  EXPECT_EQ(plan_sample(8192, 8, kScratch, kHopper).cluster, 4);
  EXPECT_EQ(plan_sample(16384, 8, kScratch, kHopper).cluster, 8);
  EXPECT_EQ(plan_sample(16384, 4, kScratch, kHopper).cluster, 4);
}

TEST(SamplePlan, LeavesLogitsWhereTheyAreWhenTheyDoNotFit) {
  EXPECT_EQ(plan_sample(32000, 1, kScratch, kAmpere), (SamplePlan{.cluster = 1, .in_shared = true}));
  EXPECT_EQ(plan_sample(151936, 1, kScratch, kAmpere), (SamplePlan{.cluster = 1, .in_shared = false}));
  EXPECT_EQ(plan_sample(1 << 20, 8, kScratch, kHopper), (SamplePlan{.cluster = 8, .in_shared = false}));
}

TEST(SamplePlan, SharedMemoryHoldsTheSlice) {
  for (const int vocab_size : {1, 7, 127, 128, 129, 32000, 151936, 262144}) {
    for (const int cluster : {1, 2, 4, 8}) {
      const int slice = sample_slice_tokens(vocab_size, cluster);
      EXPECT_EQ(slice % kSamplePiece, 0);
      EXPECT_GE(slice * cluster, vocab_size);
      EXPECT_LT(slice, vocab_size / cluster + 1 + kSamplePiece);
      EXPECT_EQ(sample_shared_bytes(vocab_size, {.cluster = cluster, .in_shared = true}, 100), 100 + 4 * slice);
      EXPECT_EQ(sample_shared_bytes(vocab_size, {.cluster = cluster, .in_shared = false}, 100), 100);
    }
  }
}

}  // namespace
}  // namespace onepass
