// What the scheduler's tests share: a model with a scheduler on it, and somebody who collects answers.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "base/source_dir.h"
#include "scheduler/scheduler.h"

namespace onepass {

constexpr int kVocab = 2048;

// A loaded model with a scheduler on it.
struct Server {
  std::unique_ptr<ModelRunner> runner;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Scheduler> scheduler;

  explicit Server(ModelRunnerOptions options, const SchedulerOptions& scheduling = {}) {
    options.model_dir = (source_dir() / "models/shakespeare-1m").string();
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
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(300), [&] { return ended_.size() >= count; }));
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

inline GenerateRequest request(std::vector<int32_t> prompt, int max_new, float temperature = 0.0f) {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.sampling.max_new_tokens = max_new;
  request.sampling.temperature = temperature;
  request.sampling.ignore_eos = true;
  return request;
}

inline std::vector<int32_t> random_tokens(std::mt19937& random, int count) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % kVocab);
  return tokens;
}

}  // namespace onepass
