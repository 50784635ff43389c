#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <numeric>
#include <stdexcept>

namespace onepass {
namespace {

TEST(ThreadPool, ParallelForCoversEveryIndexOnceOnGrainBoundaries) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 2, 7, 64, 1000}) {
      for (int64_t grain : {1, 3, 64}) {
        std::vector<std::atomic<int>> hits(count);
        pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int thread) {
          EXPECT_EQ(begin % grain, 0);
          EXPECT_LT(thread, threads);
          for (int64_t i = begin; i < end; ++i) ++hits[i];
        });
        for (auto& hit : hits) EXPECT_EQ(hit.load(), 1);
      }
    }
  }
}

TEST(ThreadPool, ParallelDynamicCoversEveryIndexOnce) {
  ThreadPool pool(4);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::atomic<int>> hits(round);
    pool.parallel_dynamic(round, [&](int64_t index, int) { ++hits[index]; });
    for (auto& hit : hits) EXPECT_EQ(hit.load(), 1);
  }
}

TEST(ThreadPool, ManyShortJobsInARowAllRun) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  for (int i = 0; i < 20000; ++i) pool.run([&](int thread) { sum += thread; });
  EXPECT_EQ(sum.load(), 20000 * 3);
}

TEST(ThreadPool, WakesAfterWorkersHaveBlocked) {
  ThreadPool pool(2);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> count{0};
    pool.run([&](int) { ++count; });
    EXPECT_EQ(count.load(), 2);
  }
}

TEST(ThreadPool, RethrowsAnExceptionAndStaysUsable) {
  ThreadPool pool(4);
  EXPECT_THROW(pool.run([](int thread) {
    if (thread == 3) throw std::runtime_error("thread 3");
  }),
               std::runtime_error);
  std::atomic<int> count{0};
  pool.run([&](int) { ++count; });
  EXPECT_EQ(count.load(), 4);
}

}  // namespace
}  // namespace onepass
