// A device for tests of the StepPlanner.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/strings.h"
#include "scheduler/step_planner.h"

namespace onepass {

struct FakeDeviceConfig {
  int page_size = 4;
  int num_pages = 33;
  int max_running = 4;
  int budget = 16;
  SchedulePolicy policy = SchedulePolicy::kFcfs;
  bool prefix_caching = true;
  int steps_in_flight = 1;
};

inline uint64_t mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9E3779B97F4A7C15u + (hash << 6) + (hash >> 2);
  return hash * 0xBF58476D1CE4E5B9u;
}

// A device whose K and V of a token is a hash of all that the token may depend on, and whose next token is another: it
// sees at once when a request reads a page that holds anything but its own text.
class FakeDevice {
 public:
  explicit FakeDevice(const FakeDeviceConfig& config)
      : config_(config),
        table_(config.max_running, config.num_pages),
        cache_(table_, config.num_pages, config.page_size, config.prefix_caching),
        planner_(
            {.max_tokens_per_step = config.budget, .max_running_requests = config.max_running, .policy = config.policy},
            cache_),
        content_(static_cast<size_t>(config.num_pages) * config.page_size, 0) {
    planner_.set_listener([&](PlanEvent event, Request&) { retractions += event == PlanEvent::kRetracted; });
  }

  int64_t capacity() const { return int64_t{cache_.capacity()} * config_.page_size; }
  KvCacheManager& cache() { return cache_; }
  StepPlanner& planner() { return planner_; }
  const std::vector<std::string>& wrong() const { return wrong_; }
  int num_unfinished() const { return num_unfinished_; }

  Request* arrive(std::vector<int32_t> prompt, int max_new, const std::string& salt = {}, int priority = 0,
                  const Request* fork_of = nullptr) {
    auto request = std::make_unique<Request>();
    request->id = requests_.size();
    request->num_prompt_tokens = static_cast<int>(prompt.size());
    request->max_tokens = static_cast<int>(std::min<int64_t>(request->num_prompt_tokens + max_new, capacity()));
    request->tokens = std::move(prompt);
    request->salt = salt;
    request->priority = priority;
    request->fork_of = fork_of;
    planner_.add(request.get());
    ++num_unfinished_;
    requests_.push_back(std::move(request));
    return requests_.back().get();
  }

  // Plans a step and runs it; false when there was none.
  bool launch() {
    const StepPlan plan = planner_.plan();
    if (plan.empty()) return false;
    expect(plan.num_tokens() <= config_.budget, "a step over its budget");
    expect(static_cast<int>(planner_.running().size()) <= config_.max_running, "too many requests run");
    std::map<const Request*, int> seen;
    std::set<int64_t> written;
    for (const StepPlan::Item& item : plan.items) {
      expect(++seen[item.request] == 1, "a request twice in a step");
      expect(item.num_tokens >= 1, "an empty item");
      tokens_computed += item.num_tokens;
      const std::vector<uint64_t> hashes = prefix_hashes(*item.request);
      for (int i = 0; i < item.num_tokens; ++i) {
        const int position = item.first_position + i;
        const int64_t at = table_.token_slot(item.slot, position, config_.page_size);
        expect(written.insert(at).second, "two requests write the same place");
        content_[at] = hashes[position];
      }
    }
    Results results;
    for (const StepPlan::Item& item : plan.items) {
      const std::vector<uint64_t> hashes = prefix_hashes(*item.request);
      for (int position = 0; position < item.first_position + item.num_tokens; ++position) {
        const int64_t at = table_.token_slot(item.slot, position, config_.page_size);
        expect(content_[at] == hashes[position],
               str_cat("request ", item.request->id, " reads another text at ", position).c_str());
      }
      if (!item.is_known) {
        expect(item.num_tokens == 1 && last_tokens_[item.slot] == true_token(*item.request, item.first_position),
               "a request goes on from another's token");
      }
    }
    for (const StepPlan::Item& item : plan.items) {
      if (!item.samples) continue;
      last_tokens_[item.slot] = true_token(*item.request, item.first_position + item.num_tokens);
      results.push_back(item.request);
    }
    for (const StepPlan::Fork& fork : plan.forks) {
      expect(plan.items[fork.item].request == fork.request->fork_of, "a fork of another request");
      last_tokens_[fork.slot] = true_token(*fork.request, fork.request->num_prompt_tokens);
      results.push_back(fork.request);
    }
    for (const PageCopy& copy : plan.copies) {
      for (int i = 0; i < copy.num_tokens; ++i) {
        content_[int64_t{copy.to} * config_.page_size + i] = content_[int64_t{copy.from} * config_.page_size + i];
      }
    }
    in_flight_.push_back(std::move(results));
    ++steps;
    return true;
  }

  // The oldest step's tokens arrive; requests that have all of theirs finish.
  bool collect() {
    if (in_flight_.empty()) return false;
    for (Request* request : in_flight_.front()) {
      const int32_t token = true_token(*request, request->num_known());
      const bool is_finished = request->state == Request::State::kFinished;
      planner_.on_token(request, token);
      if (!is_finished && request->num_known() >= request->max_tokens) finish(request);
    }
    in_flight_.pop_front();
    return true;
  }

  void finish(Request* request) {
    planner_.finish(request);
    --num_unfinished_;
  }

  // False when there was nothing to do.
  bool step() {
    bool launched = false;
    while (static_cast<int>(in_flight_.size()) < config_.steps_in_flight && launch()) launched = true;
    const bool collected = collect();
    check();
    return launched || collected;
  }

  void run_to_end() {
    for (int i = 0; num_unfinished_ > 0 && wrong_.empty(); ++i) {
      if (i > 100'000) return expect(false, "no end in sight");
      step();
    }
    while (collect()) {
    }
    check();
    expect(planner_.idle(), "the planner is not idle at the end");
    cache_.clear_prefix_cache();
    expect(cache_.num_free() == cache_.capacity(), "pages are leaked");
    expect(table_.num_used() == 0, "slots are leaked");
  }

  Request* pick(uint32_t random) {
    std::vector<Request*> alive;
    for (const auto& request : requests_) {
      if (request->state != Request::State::kFinished) alive.push_back(request.get());
    }
    return alive.empty() ? nullptr : alive[random % alive.size()];
  }

  // All that `request` will have in the end.
  std::vector<int32_t> text(const Request& request) {
    (void)true_token(request, request.max_tokens - 1);
    const std::vector<int32_t>& truth = truths_[request.id];
    return {truth.begin(), truth.begin() + request.max_tokens};
  }

  void check() {
    for (const std::string& line : cache_.check()) wrong_.push_back(line);
    for (const std::string& line : planner_.check()) wrong_.push_back(line);
  }

  int64_t tokens_computed = 0;
  int steps = 0, retractions = 0;

 private:
  using Results = std::vector<Request*>;

  void expect(bool ok, const char* what) {
    if (!ok) wrong_.emplace_back(what);
  }

  // What request `r` has at `position`: its prompt, then what the device makes of it.
  int32_t true_token(const Request& r, int position) {
    std::vector<int32_t>& truth = truths_[r.id];
    if (truth.empty()) truth.assign(r.tokens.begin(), r.tokens.begin() + r.num_prompt_tokens);
    while (static_cast<int>(truth.size()) <= position) {
      uint64_t hash = r.fork_of != nullptr ? r.id : 0;
      for (int32_t token : truth) hash = mix(hash, static_cast<uint64_t>(token));
      truth.push_back(static_cast<int32_t>(hash % 5));
    }
    return truth[position];
  }

  std::vector<uint64_t> prefix_hashes(const Request& r) {
    std::vector<uint64_t> hashes;
    uint64_t hash = std::hash<std::string>()(r.salt) + 1;
    for (int position = 0; position < r.num_computed; ++position) {
      const int32_t token = true_token(r, position);
      if (position < r.num_known()) expect(r.tokens[position] == token, "a request's tokens have changed");
      hash = mix(hash, static_cast<uint64_t>(token));
      hashes.push_back(hash);
    }
    return hashes;
  }

  const FakeDeviceConfig config_;
  RequestTable table_;
  KvCacheManager cache_;
  StepPlanner planner_;
  std::vector<uint64_t> content_;
  std::vector<std::unique_ptr<Request>> requests_;
  std::map<uint64_t, std::vector<int32_t>> truths_;
  std::deque<Results> in_flight_;
  std::map<int, int32_t> last_tokens_;  // by slot: what has been sampled there last
  std::vector<std::string> wrong_;
  int num_unfinished_ = 0;
};

}  // namespace onepass
