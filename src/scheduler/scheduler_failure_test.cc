// What the scheduler does when its queue is full, when it is stopped, and when something breaks.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <random>
#include <stdexcept>
#include <thread>

#include "scheduler/test_server.h"

namespace onepass {
namespace {

using namespace std::chrono_literals;

TEST(SchedulerFailureTest, AFullQueueRefusesAndStopEndsAll) {
  std::mt19937 random(10);
  Collector collector;
  Server server({.page_size = 16, .max_requests = 1}, {.max_queued_requests = 3});
  int refused = 0, accepted = 0;
  for (int i = 0; i < 12; ++i) {
    const auto id = server.scheduler->submit(request(random_tokens(random, 200), 300), collector.callback(accepted));
    if (id.ok()) {
      ++accepted;
      continue;
    }
    ++refused;
    EXPECT_EQ(id.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(id.status().message().substr(0, 11), "queue full:");
  }
  EXPECT_GE(accepted, 3);
  EXPECT_GE(refused, 1);
  server.scheduler.reset();  // cancels them
  collector.wait_for(accepted);
}

TEST(SchedulerFailureTest, ACallbackThatThrowsEndsItsRequestAlone) {
  std::mt19937 random(12);
  Collector collector;
  Server server({.page_size = 16, .max_requests = 4});
  const auto throws = [](const GenerateOutput&) { throw std::runtime_error("no"); };
  ASSERT_TRUE(server.scheduler->submit(request(random_tokens(random, 20), 900), throws).ok());
  ASSERT_TRUE(server.scheduler->submit(request(random_tokens(random, 20), 40), collector.callback(0)).ok());
  collector.wait_for(1);
  EXPECT_EQ(collector.result(0).tokens.size(), 40u);
  EXPECT_TRUE(server.scheduler->health().ok());
  while (server.scheduler->stats().running_requests > 0) std::this_thread::sleep_for(1ms);
  EXPECT_LT(server.scheduler->stats().generated_tokens, 200);
  server.expect_idle_and_whole();
}

TEST(SchedulerFailureTest, AnIdleServerMendsItsCache) {
  std::mt19937 random(14);
  // Room for one request of the full length, and not a page more.
  Server server({.page_size = 16, .context_length = 64, .max_requests = 3, .kv_tokens = 64});
  const auto breaks = [&, has_broken = false](const GenerateOutput&) mutable {
    if (std::exchange(has_broken, true)) return;
    const int slot = server.runner->table().acquire();  // a request that nobody knows of holds a page
    const PageId page = server.runner->table().pages(server.runner->table().used_slots()[0])[0];
    server.runner->table().append(slot, std::span(&page, 1));
  };
  ASSERT_TRUE(server.scheduler->submit(request(random_tokens(random, 20), 3), breaks).ok());
  for (int i = 0; i < 10000 && server.scheduler->stats().total_pages == 4; ++i) std::this_thread::sleep_for(1ms);
  ASSERT_EQ(server.scheduler->stats().total_pages, 3);
  server.expect_idle_and_whole();
  EXPECT_EQ(server.generate(request(random_tokens(random, 20), 8))[0].tokens.size(), 8u);
  // What asks for more than there is now ends when the cache is full.
  const GenerateResult cut = server.generate(request(random_tokens(random, 20), 44))[0];
  EXPECT_EQ(cut.finish_reason, FinishReason::kLength);
  EXPECT_EQ(cut.tokens.size(), 28u);
  const GenerateResult refused = server.generate(request(random_tokens(random, 48), 10))[0];
  EXPECT_EQ(refused.finish_reason, FinishReason::kError);
  EXPECT_EQ(refused.status.message(), "prompt: 48 tokens, but the KV cache has lost pages and holds 48");
  server.expect_idle_and_whole();
}

TEST(SchedulerFailureTest, ABrokenInvariantAnswersWhatIsInFlight) {
  std::mt19937 random(13);
  Collector collector;
  Server server({.page_size = 16, .max_requests = 2});
  // Somebody gives away the row that the scheduler counts on, between two steps.
  const auto breaks = [&, report = collector.callback(0)](const GenerateOutput& output) {
    for (const int slot : server.runner->table().used_slots()) {
      server.runner->table().truncate(slot, 0);
      server.runner->table().release(slot);
    }
    report(output);
  };
  ASSERT_TRUE(server.scheduler->submit(request(random_tokens(random, 40), 200), breaks).ok());
  for (const int key : {1, 2, 3}) {
    const auto id = server.scheduler->submit(request(random_tokens(random, 20), 20), collector.callback(key));
    if (!id.ok()) {
      EXPECT_EQ(id.status(), server.scheduler->health());
      collector.callback(key)({.finish_reason = FinishReason::kError, .status = id.status(), .is_last = true});
    }
  }
  collector.wait_for(4);
  EXPECT_GE(collector.result(0).tokens.size(), 1u);
  for (const int key : {0, 1, 2, 3}) {
    EXPECT_EQ(collector.result(key).finish_reason, FinishReason::kError);
    EXPECT_NE(collector.result(key).status.message().find("the engine has failed: "), std::string_view::npos);
  }
  EXPECT_FALSE(server.scheduler->health().ok());
  EXPECT_FALSE(generate_blocking(*server.scheduler, request({1}, 2), {}).ok());
  EXPECT_EQ(server.scheduler->check().size(), 1u);
  server.scheduler->clear_prefix_cache();  // returns
  EXPECT_TRUE(server.scheduler->stop().ok());
}

TEST(SchedulerFailureTest, AuditsAndStopMeetInAnyOrder) {
  std::mt19937 random(14);
  for (int round = 0; round < 20; ++round) {
    Collector collector;
    Server server({.page_size = 16, .max_requests = 2});
    ASSERT_TRUE(server.scheduler->submit(request(random_tokens(random, 20), 500), collector.callback(0)).ok());
    std::thread audits([&] {
      for (int i = 0; i < 20; ++i) EXPECT_EQ(server.scheduler->check(), std::vector<std::string>());
    });
    std::this_thread::sleep_for(std::chrono::microseconds(100 * round));
    EXPECT_TRUE(server.scheduler->stop().ok());
    audits.join();
    server.scheduler->clear_prefix_cache();
    EXPECT_EQ(server.scheduler->stats().free_pages, server.scheduler->stats().total_pages);
    collector.wait_for(1);
  }
}

TEST(SchedulerFailureTest, CallbacksMayAskTheSchedulerButNotStopIt) {
  std::mt19937 random(15);
  Server server({.page_size = 16, .max_requests = 2});
  std::atomic<int> calls = 0;
  std::promise<void> ended;
  const auto callback = [&](const GenerateOutput& output) {
    ++calls;
    EXPECT_EQ(server.scheduler->check(), std::vector<std::string>());
    server.scheduler->clear_prefix_cache();
    EXPECT_EQ(server.scheduler->stop().code(), absl::StatusCode::kFailedPrecondition);
    if (output.is_last) ended.set_value();
  };
  ASSERT_TRUE(server.scheduler->submit(request(random_tokens(random, 20), 10), callback).ok());
  ended.get_future().wait();
  EXPECT_GE(calls, 10);
}

}  // namespace
}  // namespace onepass
