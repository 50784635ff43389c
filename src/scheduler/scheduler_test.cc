#include "scheduler/scheduler.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>

#include "scheduler/test_server.h"

namespace onepass {
namespace {

using namespace std::chrono_literals;

TEST(SchedulerTest, ManyAtOnceGetWhatEachGetsAlone) {
  std::mt19937 random(5);
  Server alone({.page_size = 16});
  Server together({.page_size = 16, .max_requests = 8, .max_tokens_per_step = 32});
  Server overlapped({.page_size = 16, .max_requests = 8, .max_tokens_per_step = 32}, {.steps_in_flight = 2});
  Collector one, two;
  std::vector<GenerateRequest> requests;
  std::vector<GenerateResult> expected;
  const std::vector<int32_t> shared = random_tokens(random, 40);
  for (int i = 0; i < 24; ++i) {
    GenerateRequest r = request(shared, 1 + static_cast<int>(random() % 30), i % 2 == 0 ? 0.0f : 1.0f);
    if (i % 3 == 0) r.prompt.clear();
    const std::vector<int32_t> own = random_tokens(random, 1 + static_cast<int>(random() % 60));
    r.prompt.insert(r.prompt.end(), own.begin(), own.end());
    r.sampling.seed = 77 + static_cast<uint64_t>(i);
    r.sampling.repetition_penalty = i % 4 == 0 ? 1.2f : 1.0f;
    expected.push_back(alone.generate(r)[0]);
    requests.push_back(std::move(r));
  }
  for (int i = 0; i < 24; ++i) {
    ASSERT_TRUE(together.scheduler->submit(requests[i], one.callback(i)).ok());
    ASSERT_TRUE(overlapped.scheduler->submit(requests[i], two.callback(i)).ok());
  }
  one.wait_for(24);
  two.wait_for(24);
  for (int i = 0; i < 24; ++i) {
    EXPECT_EQ(one.result(i).tokens, expected[i].tokens) << i;
    EXPECT_EQ(two.result(i).tokens, expected[i].tokens) << i;
    EXPECT_EQ(one.result(i).text, expected[i].text) << i;
    EXPECT_EQ(static_cast<int>(expected[i].tokens.size()), expected[i].stats.generated_tokens);
  }
  EXPECT_LT(together.scheduler->stats().steps, alone.scheduler->stats().steps);
  for (const Server* server : {&alone, &together, &overlapped}) server->expect_idle_and_whole();
}

TEST(SchedulerTest, PrefixesAreReusedAndReported) {
  std::mt19937 random(6);
  const std::vector<int32_t> prompt = random_tokens(random, 100);
  Server server({.page_size = 16, .max_requests = 2});
  EXPECT_EQ(server.generate(request(prompt, 5))[0].stats.cached_tokens, 0);
  EXPECT_EQ(server.generate(request(prompt, 5))[0].stats.cached_tokens, 96);
  GenerateRequest other = request(prompt, 5);
  other.cache_salt = "another tenant";
  EXPECT_EQ(server.generate(other)[0].stats.cached_tokens, 0);
  EXPECT_EQ(server.generate(other)[0].stats.cached_tokens, 96);
  EXPECT_EQ(server.scheduler->stats().cached_tokens, 192);
  // The next turn of a conversation: prompt and answer are there.
  GenerateRequest turn = request(prompt, 20);
  const std::vector<int32_t> answer = server.generate(turn)[0].tokens;
  turn.prompt.insert(turn.prompt.end(), answer.begin(), answer.end());
  turn.prompt.push_back(7);
  EXPECT_EQ(server.generate(turn)[0].stats.cached_tokens, 112);  // 119 computed
  server.expect_idle_and_whole();

  Server without({.page_size = 16, .max_requests = 2}, {.prefix_caching = false});
  EXPECT_EQ(without.generate(request(prompt, 5))[0].tokens, server.generate(request(prompt, 5))[0].tokens);
  EXPECT_EQ(without.generate(request(prompt, 5))[0].stats.cached_tokens, 0);
  EXPECT_EQ(without.scheduler->stats().free_pages, without.scheduler->stats().total_pages);
}

TEST(SchedulerTest, SiblingsShareThePromptAndDifferBySeed) {
  std::mt19937 random(7);
  for (const bool prefix_caching : {true, false}) {
    Server server({.page_size = 16, .max_requests = 4}, {.prefix_caching = prefix_caching});
    GenerateRequest r = request(random_tokens(random, 90), 12, 1.0f);
    r.sampling.seed = 40;
    std::vector<GenerateResult> expected;
    for (int i = 0; i < 3; ++i) {
      GenerateRequest single = r;
      single.sampling.seed = 40 + static_cast<uint64_t>(i);
      expected.push_back(server.generate(single)[0]);
    }
    server.scheduler->clear_prefix_cache();
    const int64_t before = server.scheduler->stats().computed_tokens;
    r.n = 3;
    const std::vector<GenerateResult> results = server.generate(r);
    ASSERT_EQ(results.size(), 3u);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(results[i].tokens, expected[i].tokens) << i;
    EXPECT_NE(results[0].tokens, results[1].tokens);
    EXPECT_EQ(server.scheduler->stats().computed_tokens - before, 90 + 3 * 11);
    server.expect_idle_and_whole();
  }
}

TEST(SchedulerTest, BestOfReturnsTheLikeliest) {
  std::mt19937 random(8);
  Server server({.page_size = 16, .max_requests = 6});
  GenerateRequest r = request(random_tokens(random, 20), 8, 1.5f);
  r.n = 6;
  r.sampling.logprobs = 0;
  std::vector<std::pair<double, std::vector<int32_t>>> all;
  for (const GenerateResult& result : server.generate(r)) {
    EXPECT_EQ(result.stats.cached_tokens, 0);  // siblings share the prompt, but nothing was cached
    double sum = 0.0;
    for (const SampledToken& token : result.logprobs) sum += token.logprob;
    all.emplace_back(-sum / static_cast<double>(result.tokens.size()), result.tokens);
  }
  std::sort(all.begin(), all.end());
  r.n = 2;
  r.best_of = 6;
  r.sampling.logprobs = -1;
  const std::vector<GenerateResult> best = server.generate(r);
  ASSERT_EQ(best.size(), 2u);
  EXPECT_EQ(best[0].tokens, all[0].second);
  EXPECT_EQ(best[1].tokens, all[1].second);
  EXPECT_TRUE(best[0].logprobs.empty());
  EXPECT_EQ(best[0].stats.cached_tokens, 16);  // one page of the first request's
  EXPECT_EQ(best[1].stats.cached_tokens, 16);
  EXPECT_EQ(server.scheduler->stats().prompt_tokens, 40);
  server.expect_idle_and_whole();
}

TEST(SchedulerTest, CancelledAndOverdueRequestsLeaveAtOnce) {
  std::mt19937 random(9);
  Server server({.page_size = 16, .max_requests = 4});
  Collector collector;
  const auto id = server.scheduler->submit(request(random_tokens(random, 20), 400), collector.callback(0));
  GenerateRequest hurried = request(random_tokens(random, 20), 400);
  hurried.timeout_seconds = 1e-9;
  ASSERT_TRUE(server.scheduler->submit(hurried, collector.callback(1)).ok());
  server.scheduler->cancel(*id);
  server.scheduler->cancel(*id);
  server.scheduler->cancel(123456);
  collector.wait_for(2);
  EXPECT_EQ(collector.result(0).finish_reason, FinishReason::kCancelled);
  EXPECT_LT(collector.result(0).tokens.size(), 400u);
  EXPECT_EQ(collector.result(1).finish_reason, FinishReason::kTimeout);
  server.expect_idle_and_whole();
}

TEST(SchedulerTest, RefusesWhatCanNeverBe) {
  std::mt19937 random(11);
  Server server({.page_size = 16, .context_length = 200, .max_requests = 2, .kv_tokens = 100},
                {.max_queued_requests = 100});
  const auto message = [&](GenerateRequest r) {
    const auto id = server.scheduler->submit(std::move(r), [](const GenerateOutput&) {});
    return std::string(id.status().message());
  };
  EXPECT_EQ(message(request({}, 5)), "prompt: expected at least one token, found none");
  EXPECT_EQ(message(request(random_tokens(random, 200), 5)),
            "prompt: 200 tokens, but the context of 200 holds at most 199 and one new one");
  EXPECT_EQ(message(request(random_tokens(random, 112), 5)),
            "prompt: 112 tokens, but the KV cache of 112 holds at most 111 and one new one");
  EXPECT_EQ(message(request({kVocab}, 5)), "prompt: token id: expected 0 to 2047, found 2048");
  GenerateRequest r = request({1}, 5);
  r.n = 0;
  EXPECT_EQ(message(r), "n: expected 1 to 128, found 0");
  r.n = 4;
  r.best_of = 3;
  EXPECT_EQ(message(r), "best_of: expected n (4) to 128, found 3");
  r.best_of = 101;
  EXPECT_EQ(message(r), "a request of 101 answers, but the queue has 100 places");
  // One that outgrows the cache ends when it is full.
  const GenerateResult result = server.generate(request(random_tokens(random, 100), 50))[0];
  EXPECT_EQ(result.finish_reason, FinishReason::kLength);
  EXPECT_EQ(result.tokens.size(), 12u);
}

TEST(SchedulerTest, IdleCostsNoTime) {
  Server server({.page_size = 16});
  server.generate(request({1, 2, 3}, 3));
  std::this_thread::sleep_for(20ms);
  const auto cpu_seconds = [] {
    rusage usage;
    ::getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  const double before = cpu_seconds();
  std::this_thread::sleep_for(500ms);
  EXPECT_LT(cpu_seconds() - before, 0.05);
}

}  // namespace
}  // namespace onepass
