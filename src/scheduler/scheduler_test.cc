#include "scheduler/scheduler.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <thread>

namespace onepass {
namespace {

using namespace std::chrono_literals;

#if defined(__SANITIZE_THREAD__)
constexpr int kStressRequests = 64;
#else
constexpr int kStressRequests = 512;
#endif

constexpr int kVocab = 2048;

// A loaded model with a scheduler on it.
struct Server {
  std::unique_ptr<ModelRunner> runner;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Scheduler> scheduler;

  explicit Server(ModelRunnerOptions options, const SchedulerOptions& scheduling = {}) {
    options.model_dir = ONEPASS_SOURCE_DIR "/models/shakespeare-1m";
    options.num_threads = 2;
    options.deterministic = true;
    runner = *ModelRunner::create(options);
    tokenizer = *Tokenizer::load(options.model_dir);
    scheduler = *Scheduler::create(*runner, tokenizer.get(), scheduling);
  }

  std::vector<GenerateResult> generate(const GenerateRequest& request) const {
    auto results = generate_blocking(*scheduler, request, {});
    EXPECT_TRUE(results.ok()) << results.status();
    return *std::move(results);
  }

  void expect_idle_and_whole() const {
    const SchedulerStats stats = scheduler->stats();
    EXPECT_EQ(scheduler->check(), std::vector<std::string>());
    EXPECT_EQ(stats.running_requests, 0);
    EXPECT_EQ(stats.waiting_requests, 0);
    scheduler->clear_prefix_cache();
    EXPECT_EQ(scheduler->stats().free_pages, stats.total_pages);
  }
};

// Collects what the scheduler says of many requests.
class Collector {
 public:
  OutputCallback callback(int key) {
    return [this, key](const GenerateOutput& output) {
      const std::lock_guard lock(mutex_);
      GenerateResult& result = results_[key];
      result.text += output.text;
      result.tokens.insert(result.tokens.end(), output.tokens.begin(), output.tokens.end());
      if (output.finish_reason) {
        result.finish_reason = *output.finish_reason;
        result.stats = output.stats;
        result.status = output.status;
      }
      if (output.is_last) {
        EXPECT_TRUE(ended_.insert({key, true}).second) << "request " << key << " ends twice";
        changed_.notify_all();
      }
    };
  }
  void wait_for(size_t count) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, 300s, [&] { return ended_.size() >= count; }));
  }
  GenerateResult result(int key) {
    const std::lock_guard lock(mutex_);
    return results_[key];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int, GenerateResult> results_;
  std::map<int, bool> ended_;
};

GenerateRequest request(std::vector<int32_t> prompt, int max_new, float temperature = 0.0f) {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.sampling.max_new_tokens = max_new;
  request.sampling.temperature = temperature;
  request.sampling.ignore_eos = true;
  return request;
}

std::vector<int32_t> random_tokens(std::mt19937& random, int count) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % kVocab);
  return tokens;
}

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

TEST(SchedulerTest, AFullQueueRefusesAndStopEndsAll) {
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

TEST(SchedulerTest, RefusesWhatCanNeverBe) {
  std::mt19937 random(11);
  Server server({.page_size = 16, .context_length = 200, .max_requests = 2, .kv_tokens = 100});
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

// Requests by the hundred over a cache of a twentieth of what they need, some cancelled on the way: what remains is
// what each gets alone.
TEST(SchedulerTest, ScarcePagesAndCancelledRequestsChangeNoText) {
  std::mt19937 random(12);
  std::vector<GenerateRequest> requests;
  int64_t needed = 0;
  const std::vector<int32_t> shared = random_tokens(random, 60);
  for (int i = 0; i < kStressRequests; ++i) {
    std::vector<int32_t> prompt;
    if (random() % 3 == 0) prompt.assign(shared.begin(), shared.begin() + static_cast<int64_t>(random() % 61));
    const std::vector<int32_t> own = random_tokens(random, 1 + static_cast<int>(random() % 80));
    prompt.insert(prompt.end(), own.begin(), own.end());
    requests.push_back(request(prompt, 1 + static_cast<int>(random() % 150)));
    needed += std::ssize(prompt) + requests.back().sampling.max_new_tokens;
  }
  const int64_t kv_tokens = std::max<int64_t>(needed / 20, 256);
  Server server({.page_size = 8, .max_requests = 48, .kv_tokens = kv_tokens, .max_tokens_per_step = 128});
  Collector collector;
  std::vector<uint64_t> ids(kStressRequests);
  std::vector<int> cancelled;
  for (int i = 0; i < kStressRequests; ++i) {
    ids[i] = *server.scheduler->submit(requests[i], collector.callback(i));
    if (random() % 10 == 0) cancelled.push_back(i);
  }
  std::shuffle(cancelled.begin(), cancelled.end(), random);
  for (const int i : cancelled) {
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 20));
    server.scheduler->cancel(ids[i]);
  }
  collector.wait_for(kStressRequests);
  const SchedulerStats stats = server.scheduler->stats();
  EXPECT_GT(stats.retractions, 0);
  EXPECT_GT(stats.evicted_pages, 0);
  server.expect_idle_and_whole();

  Server alone({.page_size = 64, .max_requests = 1});
  int ended_early = 0;
  for (int i = 0; i < kStressRequests; ++i) {
    const GenerateResult result = collector.result(i);
    if (result.finish_reason == FinishReason::kCancelled) {
      ++ended_early;
      EXPECT_TRUE(std::find(cancelled.begin(), cancelled.end(), i) != cancelled.end());
      continue;
    }
    const GenerateResult expected = alone.generate(requests[i])[0];
    ASSERT_EQ(result.tokens, expected.tokens) << "request " << i;
    ASSERT_EQ(result.text, expected.text) << "request " << i;
  }
  EXPECT_GT(ended_early, 0);
}

}  // namespace
}  // namespace onepass
