// What the next step computes: which requests, how many tokens of each, in which pages.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kv_cache/kv_cache_manager.h"
#include "scheduler/request.h"

namespace onepass {

// kLpm: those with the longest cached prefix first (SGLang's cache-aware order); kFcfs: first come, first served.
enum class SchedulePolicy : uint8_t { kLpm, kFcfs };

struct StepPlannerOptions {
  int max_tokens_per_step = 512;  // of prefill chunks and decodes together
  int max_running_requests = 1;
  SchedulePolicy policy = SchedulePolicy::kLpm;
  // Says of each waiting request why it waits: a walk over the queue in each step.
  bool explains_waiting = true;
};

struct StepPlan {
  struct Item {
    Request* request;
    int slot;
    int first_position;
    int num_tokens;
    // The tokens' ids are known; otherwise (one token) it is what the request's last step samples on the device.
    bool is_known;
    bool samples;  // the last token's logits give the next token
  };
  // Samples from the logits of item `item` too, for itself.
  struct Fork {
    int item;
    Request* request;
    int slot;
  };
  std::vector<Item> items;
  std::vector<Fork> forks;       // by item
  std::vector<PageCopy> copies;  // to be made after the step's forward pass

  bool empty() const { return items.empty(); }
  int num_tokens() const;
};

// What the planner did beside planning steps, for traces and counters.
enum class PlanEvent : uint8_t { kAdmitted, kRetracted };

// Continuous batching over a KvCacheManager: every running request that decodes gets its token, what is left of the
// token budget goes to prefill chunks, running ones first, then waiting ones as pages and slots allow. When pages run
// out, prefixes that nobody uses are evicted; then the youngest request of the lowest priority goes back to the queue
// with its tokens kept. The oldest one always goes on, so that everything finishes in the end.
//
// Two requests that are about to compute the same prefix do not: the later one waits for the earlier one's pages, which
// it can use in the very step that computes them (every layer stores all new K and V before it attends).
//
// Knows no model and no clock. Not thread-safe.
class StepPlanner {
 public:
  // `cache` outlives it.
  StepPlanner(const StepPlannerOptions& options, KvCacheManager& cache);

  // Called for each admission and retraction during plan(); may be empty.
  void set_listener(std::function<void(PlanEvent, Request&)> listener) { listener_ = std::move(listener); }

  // A new request, in state kWaiting. It must outlive its stay here (until finish()).
  // REQUIRES: num_tokens_for_alone(request) fits the cache: max_tokens <= capacity * page_size.
  void add(Request* request);

  // The next step; empty when nothing can be computed now (nothing is there, or all of it waits for tokens in flight).
  StepPlan plan();

  // The token that a step in flight sampled for `request`. REQUIRES: num_in_flight > 0. Ignored when it has finished.
  void on_token(Request* request, int32_t token);

  // The request is over (done, cancelled, failed): its slot and pages are free for the next plan().
  void finish(Request* request);

  std::span<Request* const> running() const { return running_; }
  std::span<Request* const> waiting() const { return waiting_; }
  bool idle() const { return running_.empty() && waiting_.empty(); }

  // Every request in its state and place: what is wrong, a line each.
  std::vector<std::string> check() const;

 private:
  void plan_decodes(StepPlan& plan, int& budget);
  void continue_prefills(StepPlan& plan, int& budget);
  // Returns the first waiting request that it did not look at, and why.
  std::pair<size_t, WaitReason> admit(StepPlan& plan, int& budget);
  // Takes as much of `request`'s prompt into the step as budget and pages allow; false when that is nothing.
  bool add_chunk(Request* request, StepPlan& plan, int& budget);
  void add_item(Request* request, int num_tokens, StepPlan& plan, int& budget);
  void start_forks(Request* request, StepPlan& plan);
  // Sends the last of those that run, and are not in the step yet, back to the queue, `request` itself or one after it;
  // null when there is none.
  Request* retract_after(const Request& request);
  void sort_waiting();
  // Whether a request that is being prefilled will soon have more of `request`'s prefix in the cache.
  bool should_wait(const Request& request, int cached_tokens) const;
  // Whether all of the request's tokens, and one more page for each that runs, would find room now.
  bool fits(const Request& request) const;
  void start_running(Request* request, int slot);
  // Why `request` was not admitted in this plan; a retracted one keeps that as its reason.
  static void set_wait_reason(Request* request, WaitReason reason);

  const StepPlannerOptions options_;
  KvCacheManager& cache_;
  std::function<void(PlanEvent, Request&)> listener_;
  std::vector<Request*> running_;  // those that would be retracted last first
  std::vector<Request*> waiting_;
  bool has_retracted_ = false;  // in the plan that is being made
};

}  // namespace onepass
