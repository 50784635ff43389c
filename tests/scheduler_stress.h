// Hundreds of requests through the public scheduler over a KV cache far too small for them, for tests of each device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/source_dir.h"
#include "scheduler/scheduler.h"

namespace onepass {

struct StressOptions {
  std::string model;          // its folder, below source_dir()
  bool has_tokenizer = true;  // without one there are no stop strings and no texts to compare
  Device device;
  int num_requests = 512;
  bool dummy_weights = false;
  // Without it an answer's tokens may depend on what else is computed: only that each request ends as it should is
  // compared then.
  bool deterministic = true;
};

// A request, and when it is cancelled: -1 never, 0 by another thread soon after it came, n > 0 by its own callback once
// it has n tokens.
struct StressRequest {
  GenerateRequest request;
  int cancel_after = -1;
};

// What the scheduler says of many requests.
class StressAnswers {
 public:
  explicit StressAnswers(const std::vector<StressRequest>& requests) : answers_(requests.size()) {
    for (size_t i = 0; i < requests.size(); ++i) answers_[i].resize(requests[i].request.n);
  }

  OutputCallback callback(Scheduler& scheduler, int request, int cancel_after) {
    return [this, &scheduler, request, cancel_after, count = 0](const GenerateOutput& output) mutable {
      const int before = count;
      count += static_cast<int>(output.tokens.size());
      if (cancel_after > 0 && before < cancel_after && count >= cancel_after) scheduler.cancel(output.id);
      const std::lock_guard lock(mutex_);
      append_output(output, answers_[request][output.index]);
      if (!output.is_last) return;
      ++ended_;
      changed_.notify_all();
    };
  }
  void wait_for(int count) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(240), [&] { return ended_ >= count; }))
        << ended_ << " of " << count << " requests have ended";
  }
  // REQUIRES: all have ended.
  const std::vector<GenerateResult>& of(int request) const { return answers_[request]; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::vector<GenerateResult>> answers_;  // [requests][n]
  int ended_ = 0;
};

class SchedulerStress {
 public:
  // Different prompts, half of them with a beginning in common; greedy and sampled ones in all ways; one to four
  // answers; some that are cancelled.
  explicit SchedulerStress(const StressOptions& options) : options_(options) {
    const char* const seed = std::getenv("ONEPASS_TEST_SEED");
    random_.seed(seed != nullptr ? std::strtoul(seed, nullptr, 10) : 12);
    // As plainly as can be: nothing cached, replayed or under way at the same time.
    alone_ =
        start({.page_size = 64, .num_threads = 1, .max_requests = 1, .cuda_graphs = false, .max_tokens_per_step = 512},
              {.prefix_caching = false, .steps_in_flight = 1});
    const std::vector<int32_t> shared[] = {tokens(40), tokens(70), tokens(70)};
    for (int i = 0; i < options_.num_requests; ++i) {
      StressRequest& one = requests_.emplace_back();
      std::vector<int32_t>& prompt = one.request.prompt;
      if (draw(2) == 0) {
        const std::vector<int32_t>& beginning = shared[draw(3)];
        prompt.assign(beginning.begin(), beginning.begin() + draw(static_cast<int>(beginning.size()) + 1));
      }
      const std::vector<int32_t> own = tokens(1 + draw(80));
      prompt.insert(prompt.end(), own.begin(), own.end());
      set_sampling(one.request.sampling);
      if (draw(5) == 0) one.request.n = 2 + draw(3);
      if (draw(6) == 0) one.request.cache_salt = "a tenant";
      one.request.priority = draw(3);
      if (i % 8 == 3) one.cancel_after = i % 3 == 0 ? 0 : 1 + draw(one.request.sampling.max_new_tokens / 2 + 1);
    }
    if (options_.deterministic) compute_alone();
  }

  // All of them at once, against what each answer is alone.
  void run(ModelRunnerOptions runner_options, const SchedulerOptions& scheduling) {
    runner_options.kv_tokens = kKvTokens;
    StressAnswers answers(requests_);  // outlives the scheduler, which calls back
    const Served served = start(runner_options, scheduling);
    Scheduler& scheduler = *served.scheduler;
    std::vector<uint64_t> to_cancel;
    for (int i = 0; i < std::ssize(requests_);) {
      for (int burst = 1 + draw(64); burst > 0 && i < std::ssize(requests_); --burst, ++i) {
        const int cancel_after = requests_[i].cancel_after;
        const auto id = scheduler.submit(requests_[i].request, answers.callback(scheduler, i, cancel_after));
        ASSERT_TRUE(id.ok()) << id.status();
        if (cancel_after == 0) to_cancel.push_back(*id);
      }
      // There is always a queue, and requests come while others run.
      answers.wait_for(i - 128);
      for (const uint64_t id : to_cancel) scheduler.cancel(id);
      to_cancel.clear();
    }
    answers.wait_for(static_cast<int>(requests_.size()));
    if (testing::Test::HasFatalFailure()) return;

    const SchedulerStats stats = scheduler.stats();
    if (options_.deterministic) {
      EXPECT_GT(stats.retractions, 0);
      EXPECT_GT(stats.evicted_pages, 0);
      EXPECT_GT(stats.cached_tokens, 0);
    }
    EXPECT_EQ(stats.running_requests, 0);
    EXPECT_EQ(stats.waiting_requests, 0);
    EXPECT_TRUE(scheduler.health().ok()) << scheduler.health();
    EXPECT_EQ(scheduler.check(), std::vector<std::string>());
    scheduler.clear_prefix_cache();
    EXPECT_EQ(scheduler.check(), std::vector<std::string>());
    EXPECT_EQ(scheduler.stats().free_pages, stats.total_pages) << "pages have leaked";

    int marked = 0, cancelled = 0;
    for (int i = 0; i < std::ssize(requests_); ++i) {
      bool is_cancelled = false;
      for (int index = 0; index < requests_[i].request.n; ++index) {
        const GenerateResult& answer = answers.of(i)[index];
        is_cancelled = is_cancelled || answer.finish_reason == FinishReason::kCancelled;
        const std::string name = "request " + std::to_string(i) + ", answer " + std::to_string(index);
        if (options_.deterministic) {
          compare(answer, expected_[i][index], requests_[i], scheduling.steps_in_flight, name);
        } else {
          ASSERT_TRUE(answer.status.ok()) << name << ": " << answer.status;
          EXPECT_LE(std::ssize(answer.tokens), requests_[i].request.sampling.max_new_tokens) << name;
        }
        if (testing::Test::HasFatalFailure()) return;
      }
      marked += requests_[i].cancel_after >= 0 ? 1 : 0;
      cancelled += is_cancelled ? 1 : 0;
    }
    // Some end by themselves before.
    EXPECT_GE(2 * cancelled, marked) << "too few were cancelled to say anything";
  }

 private:
  // Of the KV cache: three or four requests of the longest sort, and a hundredth of what all of them take.
  static constexpr int64_t kKvTokens = 1024;

  struct Served {
    std::unique_ptr<ModelRunner> runner;
    std::unique_ptr<Tokenizer> tokenizer;
    std::unique_ptr<Scheduler> scheduler;
  };

  Served start(ModelRunnerOptions options, const SchedulerOptions& scheduling) const {
    options.model_dir = (source_dir() / options_.model).string();
    options.device = options_.device;
    if (options.num_threads == 0) options.num_threads = 2;
    options.deterministic = options_.deterministic;
    options.dummy_weights = options_.dummy_weights;
    options.plan_file = testing::TempDir() + "onepass_stress_plans";
    Served served;
    served.runner = ModelRunner::create(options).value();
    if (options_.has_tokenizer) served.tokenizer = Tokenizer::load(options.model_dir).value();
    served.scheduler = Scheduler::create(*served.runner, served.tokenizer.get(), scheduling).value();
    return served;
  }

  int draw(int count) { return static_cast<int>(random_() % static_cast<unsigned>(count)); }
  float draw_between(float least, float most) {
    return least + (most - least) * static_cast<float>(draw(1000)) / 1000.0f;
  }
  std::vector<int32_t> tokens(int count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = draw(alone_.runner->config().vocab_size);
    return tokens;
  }

  void set_sampling(SamplingParams& sampling) {
    sampling.max_new_tokens = 1 + draw(100);
    sampling.seed = random_();
    sampling.ignore_eos = draw(4) != 0;
    if (draw(8) == 0) sampling.stop_token_ids = tokens(20);
    if (draw(8) == 0) sampling.min_new_tokens = draw(sampling.max_new_tokens);
    if (options_.has_tokenizer && draw(8) == 0) sampling.stop = {"the", " I"};
    if (draw(8) == 0) sampling.logprobs = draw(3);
    if (draw(6) == 0) sampling.repetition_penalty = draw_between(0.8f, 1.5f);
    if (draw(8) == 0) sampling.frequency_penalty = draw_between(-0.5f, 0.5f);
    if (draw(8) == 0) sampling.presence_penalty = draw_between(-0.5f, 0.5f);
    if (draw(8) == 0) sampling.logit_bias = {{tokens(1)[0], draw_between(-2.0f, 5.0f)}};
    sampling.temperature = draw(3) == 0 ? 0.0f : draw_between(0.3f, 1.5f);
    if (draw(3) == 0) sampling.top_k = 1 + draw(50);
    if (draw(3) == 0) sampling.top_p = draw_between(0.5f, 1.0f);
    if (draw(4) == 0) sampling.min_p = draw_between(0.0f, 0.2f);
  }

  // Each answer as a request of its own, one after the other, with nothing cached.
  void compute_alone() {
    for (const StressRequest& one : requests_) {
      std::vector<GenerateResult>& answers = expected_.emplace_back();
      answers.reserve(one.request.n);
      for (int index = 0; index < one.request.n; ++index) {
        GenerateRequest single = one.request;
        single.n = 1;
        single.sampling.seed += static_cast<uint64_t>(index);
        answers.push_back(generate_blocking(*alone_.scheduler, single, {}).value().at(0));
      }
    }
  }

  static void compare(const GenerateResult& answer, const GenerateResult& alone, const StressRequest& request,
                      int steps_in_flight, const std::string& name) {
    if (request.cancel_after >= 0 && answer.finish_reason == FinishReason::kCancelled) {
      ASSERT_LE(answer.tokens.size(), alone.tokens.size()) << name;
      ASSERT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(), alone.tokens.begin()))
          << name << ", cancelled";
      if (request.cancel_after > 0 && request.request.n == 1 && request.request.sampling.stop.empty()) {
        EXPECT_LE(std::ssize(answer.tokens), request.cancel_after + steps_in_flight) << name << " goes on";
      }
      return;
    }
    ASSERT_TRUE(answer.status.ok()) << name << ": " << answer.status;
    ASSERT_EQ(answer.finish_reason, alone.finish_reason) << name;
    ASSERT_EQ(answer.tokens, alone.tokens) << name;
    ASSERT_EQ(answer.text, alone.text) << name;
    ASSERT_EQ(answer.matched_stop, alone.matched_stop) << name;
    ASSERT_EQ(answer.logprobs.size(), alone.logprobs.size()) << name;
    for (size_t i = 0; i < answer.logprobs.size(); ++i) {
      ASSERT_EQ(answer.logprobs[i].logprob, alone.logprobs[i].logprob) << name << ", token " << i;
    }
  }

  const StressOptions options_;
  std::mt19937 random_;
  Served alone_;
  std::vector<StressRequest> requests_;
  std::vector<std::vector<GenerateResult>> expected_;  // [requests][n]
};

}  // namespace onepass
