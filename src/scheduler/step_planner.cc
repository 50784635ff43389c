#include "scheduler/step_planner.h"

#include <algorithm>

#include "base/check.h"
#include "base/prefetch.h"
#include "base/strings.h"

namespace onepass {
namespace {

// Longer queues are served first come, first served: looking all of them up in the cache would cost more than the order
// gains (SGLang draws the same line).
constexpr size_t kMaxSorted = 128;

// Who goes on when not all can, and who is admitted first.
bool precedes(const Request* a, const Request* b) {
  return a->priority != b->priority ? a->priority > b->priority : a->id < b->id;
}

std::span<const int32_t> computed_tokens(const Request& request) {
  return std::span(request.tokens).first(std::min(request.num_computed, request.num_known()));
}

int common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  return static_cast<int>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

}  // namespace

int StepPlan::num_tokens() const {
  int total = 0;
  for (const Item& item : items) total += item.num_tokens;
  return total;
}

StepPlanner::StepPlanner(const StepPlannerOptions& options, KvCacheManager& cache) : options_(options), cache_(cache) {
  ONEPASS_CHECK_GE(options.max_running_requests, 1);
  ONEPASS_CHECK_GE(options.max_tokens_per_step, options.max_running_requests);
}

void StepPlanner::add(Request* request) {
  ONEPASS_CHECK(request->state == Request::State::kWaiting);
  ONEPASS_CHECK_LE(static_cast<int64_t>(request->max_tokens), int64_t{cache_.capacity()} * cache_.page_size());
  waiting_.push_back(request);
}

StepPlan StepPlanner::plan() {
  StepPlan plan;
  plan.items.reserve(running_.size() + 1);
  int budget = options_.max_tokens_per_step;
  has_retracted_ = false;
  plan_decodes(plan, budget);
  continue_prefills(plan, budget);
  // Who has just lost its pages must not get them back in the same breath.
  const auto [first_left, reason] = has_retracted_ ? std::pair{size_t{0}, WaitReason::kPages} : admit(plan, budget);
  for (size_t i = first_left; options_.explains_waiting && i < waiting_.size(); ++i)
    set_wait_reason(waiting_[i], reason);
  for (const StepPlan::Item& item : plan.items) item.request->is_planned = false;
  for (const StepPlan::Fork& fork : plan.forks) fork.request->is_planned = false;
  return plan;
}

void StepPlanner::plan_decodes(StepPlan& plan, int& budget) {
  // Retraction takes from the end of running_, at this index or after it.
  for (size_t i = 0; i < running_.size(); ++i) {
    if (i + kPrefetchDistance < running_.size()) prefetch(running_[i + kPrefetchDistance]);
    Request* const request = running_[i];
    if (!request->is_decoding() || request->num_planned() >= request->max_tokens) continue;
    bool is_running = true;
    while (is_running && !cache_.reserve(request->slot, request->num_computed + 1)) {
      is_running = retract_after(*request) != request;
    }
    if (is_running) add_item(request, 1, plan, budget);
  }
}

void StepPlanner::continue_prefills(StepPlan& plan, int& budget) {
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    Request* const request = running_[i];
    if (request->is_planned || request->is_decoding()) continue;
    // Those after it give way; it stays itself, with what it has, until others need that.
    while (!add_chunk(request, plan, budget)) {
      if (running_.back() == request || running_.back()->is_planned || retract_after(*request) == nullptr) break;
    }
  }
}

bool StepPlanner::add_chunk(Request* request, StepPlan& plan, int& budget) {
  request->num_computed = cache_.extend_from_cache(request->slot, request->tokens, request->num_computed);
  const int done = request->num_computed, pending = request->num_known() - done, page_size = cache_.page_size();
  int chunk = static_cast<int>(std::min<int64_t>({pending, budget, cache_.max_tokens(request->slot) - done}));
  // Chunks end with pages, so that others can share all of them.
  if (chunk < pending && (done + chunk) / page_size * page_size > done)
    chunk = (done + chunk) / page_size * page_size - done;
  if (chunk <= 0) return false;
  ONEPASS_CHECK(cache_.reserve(request->slot, done + chunk));
  add_item(request, chunk, plan, budget);
  return true;
}

void StepPlanner::add_item(Request* request, int num_tokens, StepPlan& plan, int& budget) {
  const StepPlan::Item item{.request = request,
                            .slot = request->slot,
                            .first_position = request->num_computed,
                            .num_tokens = num_tokens,
                            .is_known = request->num_computed + num_tokens <= request->num_known(),
                            .samples = request->num_computed + num_tokens == request->num_planned()};
  const bool is_prefill = !request->is_decoding();
  request->num_computed += num_tokens;
  request->is_planned = true;
  budget -= num_tokens;
  // From here on others find these pages: a step reads what it has stored itself.
  if (is_prefill) cache_.commit(request->slot, computed_tokens(*request));
  if (item.samples) {
    if (is_prefill && request->num_known() == request->num_prompt_tokens) start_forks(request, plan);
    ++request->num_in_flight;
  }
  plan.items.push_back(item);
}

void StepPlanner::start_forks(Request* request, StepPlan& plan) {
  for (size_t i = 0; i < waiting_.size();) {
    Request* const fork = waiting_[i];
    if (fork->fork_of != request || static_cast<int>(running_.size()) >= options_.max_running_requests) {
      ++i;
      continue;
    }
    const auto forked = cache_.fork(request->slot, fork->tokens);
    if (!forked) return;  // it comes by itself later
    waiting_.erase(waiting_.begin() + static_cast<int64_t>(i));
    start_running(fork, forked->slot);
    fork->num_computed = fork->num_prompt_tokens;
    fork->cached_tokens = fork->num_prompt_tokens;
    fork->num_in_flight = 1;
    fork->is_planned = true;
    if (forked->copy.num_tokens > 0) plan.copies.push_back(forked->copy);
    plan.forks.push_back({.item = static_cast<int>(plan.items.size()), .request = fork, .slot = forked->slot});
  }
}

Request* StepPlanner::retract_after(const Request& request) {
  Request* const victim = running_.back();
  if (victim->is_planned || precedes(victim, &request)) return nullptr;
  cache_.close(victim->slot, computed_tokens(*victim));
  running_.pop_back();
  victim->slot = -1;
  victim->num_computed = 0;
  victim->state = Request::State::kWaiting;
  victim->wait_reason = WaitReason::kRetraction;
  ++victim->num_retractions;
  waiting_.push_back(victim);
  has_retracted_ = true;
  if (listener_) listener_(PlanEvent::kRetracted, *victim);
  return victim;
}

void StepPlanner::sort_waiting() {
  if (options_.policy == SchedulePolicy::kFcfs || waiting_.size() > kMaxSorted || waiting_.size() < 2) {
    std::sort(waiting_.begin(), waiting_.end(), precedes);
    return;
  }
  std::vector<std::pair<int, Request*>> keyed;
  keyed.reserve(waiting_.size());
  for (Request* request : waiting_) keyed.emplace_back(cache_.cached_tokens(request->tokens, request->salt), request);
  std::sort(keyed.begin(), keyed.end(), [](const auto& a, const auto& b) {
    if (a.second->priority == b.second->priority && a.first != b.first) return a.first > b.first;
    return precedes(a.second, b.second);
  });
  for (size_t i = 0; i < keyed.size(); ++i) waiting_[i] = keyed[i].second;
}

bool StepPlanner::should_wait(const Request& request, int cached_tokens) const {
  if (!cache_.prefix_caching()) return false;
  for (const Request* other : running_) {
    if (other->num_computed >= other->num_known() || other->salt != request.salt) continue;
    const auto wanted = std::span(request.tokens).first(request.tokens.size() - 1);
    const int common = common_prefix(other->tokens, wanted) / cache_.page_size() * cache_.page_size();
    if (common > cached_tokens) return true;
  }
  return false;
}

bool StepPlanner::fits(const Request& request) const {
  const auto missing_pages = [&](const Request& r) {
    return (r.num_known() + cache_.page_size()) / cache_.page_size() - cache_.num_pages(r.slot);
  };
  int needed = missing_pages(request);
  for (const Request* other : running_) needed += std::max(1, missing_pages(*other));
  return needed <= cache_.num_available();
}

void StepPlanner::start_running(Request* request, int slot) {
  request->slot = slot;
  request->state = Request::State::kRunning;
  request->wait_reason = WaitReason::kNone;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), request, precedes), request);
  if (listener_) listener_(PlanEvent::kAdmitted, *request);
}

void StepPlanner::set_wait_reason(Request* request, WaitReason reason) {
  // What keeps a victim waiting is that it lost its pages, until it runs again.
  if (request->wait_reason != WaitReason::kRetraction) request->wait_reason = reason;
}

std::pair<size_t, WaitReason> StepPlanner::admit(StepPlan& plan, int& budget) {
  // Nobody is admitted for as long as all places are taken: no need to sort a long queue.
  if (static_cast<int>(running_.size()) >= options_.max_running_requests) return {0, WaitReason::kRequests};
  if (!waiting_.empty() && budget > 0) sort_waiting();
  size_t i = 0;
  while (i < waiting_.size()) {
    if (budget <= 0) return {i, WaitReason::kBudget};
    if (static_cast<int>(running_.size()) >= options_.max_running_requests) return {i, WaitReason::kRequests};
    Request* const request = waiting_[i];
    const Request* const leader = request->fork_of;
    const bool leader_is_on_its_way = leader != nullptr && leader->state != Request::State::kFinished &&
                                      leader->num_planned() == leader->num_prompt_tokens;
    const bool must_wait =
        leader_is_on_its_way || should_wait(*request, cache_.cached_tokens(request->tokens, request->salt));
    if (must_wait || request->num_in_flight > 0) {
      set_wait_reason(request, must_wait ? WaitReason::kPrefix : WaitReason::kStep);
      ++i;
      continue;
    }
    const auto opened = cache_.open(request->tokens, request->salt);
    if (!opened) return {i, WaitReason::kRequests};
    request->slot = opened->slot;
    if (!running_.empty() && !fits(*request)) {
      cache_.close(opened->slot, {});
      request->slot = -1;
      return {i, WaitReason::kPages};
    }
    waiting_.erase(waiting_.begin() + static_cast<int64_t>(i));
    start_running(request, opened->slot);
    request->num_computed = opened->cached_tokens;
    if (request->cached_tokens < 0) request->cached_tokens = opened->cached_tokens;
    const size_t before = waiting_.size();
    add_chunk(request, plan, budget);
    if (waiting_.size() != before) i = 0;  // its forks have left the queue
  }
  return {i, WaitReason::kNone};
}

void StepPlanner::on_token(Request* request, int32_t token) {
  ONEPASS_CHECK_GE(request->num_in_flight, 1);
  --request->num_in_flight;
  if (request->state != Request::State::kFinished) request->tokens.push_back(token);
}

void StepPlanner::finish(Request* request) {
  std::vector<Request*>& list = request->state == Request::State::kRunning ? running_ : waiting_;
  ONEPASS_CHECK(request->state != Request::State::kFinished);
  const auto place = std::find(list.begin(), list.end(), request);
  ONEPASS_CHECK(place != list.end());
  list.erase(place);
  if (request->slot >= 0) cache_.close(request->slot, computed_tokens(*request));
  request->slot = -1;
  request->state = Request::State::kFinished;
}

std::vector<std::string> StepPlanner::check() const {
  std::vector<std::string> wrong;
  const auto expect = [&](bool ok, const Request* request, const char* what) {
    if (!ok) wrong.push_back(str_cat("request ", request->id, ": ", what));
  };
  for (const Request* request : running_) {
    expect(request->state == Request::State::kRunning && request->slot >= 0, request, "runs in another state");
    expect(request->num_computed <= request->num_planned(), request, "has computed more than there is");
    expect(int64_t{cache_.num_pages(request->slot)} * cache_.page_size() >= request->num_computed, request,
           "has fewer pages than tokens");
  }
  for (const Request* request : waiting_) {
    expect(request->state == Request::State::kWaiting && request->slot < 0 && request->num_computed == 0, request,
           "waits in another state");
  }
  if (!std::is_sorted(running_.begin(), running_.end(), precedes)) wrong.emplace_back("running requests out of order");
  return wrong;
}

}  // namespace onepass
