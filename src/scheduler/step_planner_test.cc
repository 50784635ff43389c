#include "scheduler/step_planner.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "scheduler/step_planner_fake_device.h"

namespace onepass {
namespace {

std::vector<int32_t> range(int begin, int end) {
  std::vector<int32_t> tokens;
  for (int i = begin; i < end; ++i) tokens.push_back(i);
  return tokens;
}

TEST(StepPlannerTest, LongPromptsLeaveRoomForDecoding) {
  FakeDevice device({.page_size = 4, .num_pages = 200, .max_running = 3, .budget = 16});
  Request* const first = device.arrive(range(0, 3), 100);
  device.step();
  Request* const longer = device.arrive(range(100, 400), 4);
  int steps = 0;
  while (longer->num_generated() == 0) {
    const int before = first->num_generated();
    device.step();
    EXPECT_EQ(first->num_generated(), before + 1) << "a chunk stalls the other's decoding";
    ++steps;
  }
  EXPECT_EQ(steps, 25);  // 300 tokens, 12 a step: 15 beside the decode, cut to whole pages
  device.run_to_end();
  EXPECT_EQ(device.wrong(), std::vector<std::string>());
}

TEST(StepPlannerTest, ComputesASharedPrefixOnce) {
  for (const int budget : {20, 24, 30, 50, 64, 2000}) {
    FakeDevice device({.page_size = 8, .num_pages = 400, .max_running = 16, .budget = budget});
    for (int i = 0; i < 16; ++i) {
      std::vector<int32_t> prompt = range(0, 128);
      for (int j = 0; j < 8; ++j) prompt.push_back(1000 + i * 8 + j);
      device.arrive(prompt, 1);
    }
    device.run_to_end();
    EXPECT_EQ(device.wrong(), std::vector<std::string>());
    EXPECT_EQ(device.tokens_computed, 128 + 16 * 8) << "budget " << budget;
  }
}

TEST(StepPlannerTest, ForksShareThePromptAndCopyItsLastPage) {
  FakeDevice device({.page_size = 8, .num_pages = 20, .max_running = 4, .budget = 64});
  Request* const leader = device.arrive(range(0, 20), 6);
  for (int i = 0; i < 3; ++i) device.arrive(range(0, 20), 6, "", 0, leader);
  device.step();
  EXPECT_EQ(device.planner().running().size(), 4u);
  EXPECT_EQ(device.tokens_computed, 20);
  // Two whole pages together, the third each for itself.
  EXPECT_EQ(device.cache().capacity() - device.cache().num_free(), 2 + 4);
  device.run_to_end();
  EXPECT_EQ(device.wrong(), std::vector<std::string>());
  EXPECT_EQ(device.tokens_computed, 20 + 4 * 5);
}

TEST(StepPlannerTest, TheOldestGoesOnWhenPagesRunOut) {
  FakeDevice device({.page_size = 1, .num_pages = 25, .max_running = 4, .budget = 16});
  Request* const first = device.arrive(range(0, 5), 19);
  for (int i = 1; i < 4; ++i) device.arrive(range(100 * i, 100 * i + 4), 19);
  while (first->state != Request::State::kFinished) device.step();
  EXPECT_EQ(first->num_retractions, 0);
  EXPECT_GT(device.retractions, 0);
  device.run_to_end();
  EXPECT_EQ(device.wrong(), std::vector<std::string>());
}

TEST(StepPlannerTest, HigherPriorityAndLongerPrefixGoFirst) {
  FakeDevice device({.page_size = 2, .num_pages = 100, .max_running = 1, .budget = 16, .policy = SchedulePolicy::kLpm});
  device.arrive(range(0, 8), 1);
  device.run_to_end();  // clears the cache
  Request* const warm = device.arrive(range(0, 8), 3);
  while (warm->state != Request::State::kFinished) device.step();
  Request* const plain = device.arrive(range(50, 60), 1);
  std::vector<int32_t> longer = range(0, 8);
  longer.push_back(77);
  Request* const cached = device.arrive(longer, 1);
  Request* const urgent = device.arrive(range(70, 75), 1, "", /*priority=*/1);
  std::vector<const Request*> order;
  while (order.size() < 3) {
    device.step();
    for (const Request* request : {plain, cached, urgent}) {
      if (request->state == Request::State::kFinished &&
          std::find(order.begin(), order.end(), request) == order.end()) {
        order.push_back(request);
      }
    }
  }
  EXPECT_EQ(order, (std::vector<const Request*>{urgent, cached, plain}));
  EXPECT_EQ(cached->cached_tokens, 8);
  EXPECT_EQ(plain->cached_tokens, 0);
}

TEST(StepPlannerTest, FirstComeFirstServedIgnoresTheCache) {
  FakeDevice device({.page_size = 2, .num_pages = 100, .max_running = 1, .budget = 16});
  Request* const warm = device.arrive(range(0, 8), 3);
  while (warm->state != Request::State::kFinished) device.step();
  const Request* const first = device.arrive(range(50, 60), 1);
  const Request* const cached = device.arrive(range(0, 9), 1);
  device.step();
  EXPECT_EQ(first->state, Request::State::kFinished);
  EXPECT_EQ(cached->state, Request::State::kWaiting);
  device.run_to_end();
  EXPECT_EQ(cached->cached_tokens, 8);
  EXPECT_EQ(device.wrong(), std::vector<std::string>());
}

TEST(StepPlannerTest, TheLowestPriorityGivesWayWhateverItsAge) {
  FakeDevice device({.page_size = 1, .num_pages = 25, .max_running = 3, .budget = 16});
  Request* const plain = device.arrive(range(0, 4), 19);
  device.step();
  Request* const urgent = device.arrive(range(100, 104), 19, "", /*priority=*/2);
  Request* const middle = device.arrive(range(200, 204), 4, "", /*priority=*/1);
  while (urgent->state != Request::State::kFinished) device.step();
  EXPECT_GT(plain->num_retractions, 0);
  EXPECT_EQ(urgent->num_retractions, 0);
  EXPECT_EQ(middle->num_retractions, 0);
  EXPECT_NE(plain->state, Request::State::kFinished);
  device.run_to_end();
  EXPECT_EQ(device.wrong(), std::vector<std::string>());
}

TEST(StepPlannerTest, NobodyWaitsForAPrefixOfAnotherSalt) {
  FakeDevice device({.page_size = 8, .num_pages = 100, .max_running = 4, .budget = 20});
  Request* const first = device.arrive(range(0, 40), 1, "a");
  Request* const same = device.arrive(range(0, 40), 1, "a");
  Request* const other = device.arrive(range(0, 40), 1, "b");
  device.step();
  EXPECT_EQ(first->num_computed, 16);
  EXPECT_EQ(same->state, Request::State::kWaiting);
  EXPECT_EQ(same->wait_reason, WaitReason::kPrefix);
  EXPECT_EQ(other->state, Request::State::kRunning);
  EXPECT_EQ(other->num_computed, 4);
  device.run_to_end();
  EXPECT_EQ(device.wrong(), std::vector<std::string>());
}

TEST(StepPlannerTest, AdmitsOnlyWhatFitsBesideThoseThatRun) {
  FakeDevice device({.page_size = 4, .num_pages = 11, .max_running = 4, .budget = 64});
  Request* const first = device.arrive(range(0, 18), 8);
  Request* const second = device.arrive(range(100, 118), 1);  // 5 pages, as many as are left, but one is the first's
  device.step();
  EXPECT_EQ(second->state, Request::State::kWaiting);
  EXPECT_EQ(second->wait_reason, WaitReason::kPages);
  while (first->state != Request::State::kFinished) device.step();
  device.run_to_end();
  EXPECT_EQ(device.retractions, 0);
  EXPECT_EQ(device.wrong(), std::vector<std::string>());
}

TEST(StepPlannerTest, APrefillTakesOverWhatTheCacheLearnsMeanwhile) {
  FakeDevice device({.page_size = 4, .num_pages = 100, .max_running = 2, .budget = 5});
  Request* const first = device.arrive(range(0, 4), 28);
  while (first->num_generated() < 25) device.step();
  // The next turn comes before the answer is complete: only the prompt's page is in the cache.
  std::vector<int32_t> prompt = device.text(*first);
  for (const int32_t token : range(500, 510)) prompt.push_back(token);
  Request* const next = device.arrive(prompt, 1);
  device.step();
  EXPECT_EQ(next->cached_tokens, 4);
  while (first->state != Request::State::kFinished) device.step();
  EXPECT_EQ(next->num_computed, 4 + 3 * 4);
  device.step();
  EXPECT_EQ(next->num_computed, 28 + 4) << "28: the whole pages of the 31 tokens that the first has computed";
  device.run_to_end();
  EXPECT_EQ(device.tokens_computed, (4 + 27) + (42 - 4 - 12));
  EXPECT_EQ(device.wrong(), std::vector<std::string>());  // no page stays locked
}

TEST(StepPlannerTest, OnlyTheRetractedWaitBecauseOfARetraction) {
  FakeDevice device({.page_size = 1, .num_pages = 25, .max_running = 4, .budget = 16});
  for (int i = 0; i < 8; ++i) device.arrive(range(100 * i, 100 * i + 4), 19);
  for (int i = 0; device.num_unfinished() > 0 && i < 1000; ++i) {
    device.step();
    for (const Request* request : device.planner().waiting()) {
      // Once in the queue it stays there for one reason: it does not alternate with others.
      const bool lost_its_pages = request->num_retractions > 0;
      EXPECT_EQ(request->wait_reason == WaitReason::kRetraction, lost_its_pages) << "request " << request->id;
    }
  }
  EXPECT_GT(device.retractions, 0);
  device.run_to_end();
  EXPECT_EQ(device.wrong(), std::vector<std::string>());
}

}  // namespace
}  // namespace onepass
