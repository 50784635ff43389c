#include "scheduler/scheduler_loop.h"

#include <algorithm>
#include <future>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/prefetch.h"

namespace onepass {

SchedulerLoop::SchedulerLoop(ModelRunner& runner, const Tokenizer* tokenizer, const SchedulerOptions& options,
                             std::unique_ptr<Trace> trace)
    : runner_(runner),
      tokenizer_(tokenizer),
      options_(options),
      trace_(std::move(trace)),
      cache_(runner.table(), runner.pool().config().num_pages, runner.options().page_size, options.prefix_caching),
      planner_({.max_tokens_per_step = runner.options().max_tokens_per_step,
                .max_running_requests = runner.options().max_requests,
                .policy = options.longest_prefix_first ? SchedulePolicy::kLpm : SchedulePolicy::kFcfs,
                .explains_waiting = trace_ != nullptr},
               cache_),
      executor_(runner) {
  planner_.set_listener([this](PlanEvent event, Request& request) { on_plan_event(event, request); });
  publish();
  const std::lock_guard lock(mutex_);  // the thread's first look into the inbox comes after thread_ is set
  thread_ = std::thread([this] { run(); });
}

SchedulerLoop::~SchedulerLoop() { (void)stop(); }

Status SchedulerLoop::stop() {
  if (is_own_thread()) return absl::FailedPreconditionError("the scheduler cannot be stopped by its own callback");
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(is_stopped_, true)) return ok_status();
    inbox_.stop = true;
  }
  wake_.notify_one();
  thread_.join();
  return trace_ ? trace_->close() : ok_status();
}

int SchedulerLoop::max_tokens() const {
  const int64_t in_cache = int64_t{runner_.pool().config().num_pages - 1} * runner_.options().page_size;
  return static_cast<int>(std::min<int64_t>(runner_.options().context_length, in_cache));
}

void SchedulerLoop::send(const std::function<void(Inbox&)>& change) {
  {
    const std::lock_guard lock(mutex_);
    change(inbox_);
  }
  wake_.notify_one();
}

StatusOr<uint64_t> SchedulerLoop::submit(GenerateRequest request, OutputCallback on_output) {
  const int count = std::max(request.n, request.best_of);
  if (count > options_.max_queued_requests) {
    return invalid_argument("a request of ", count, " answers, but the queue has ", options_.max_queued_requests,
                            " places");
  }
  uint64_t id = 0;
  {
    const std::lock_guard lock(mutex_);
    ONEPASS_RETURN_IF_ERROR(health_);
    if (is_stopped_) return absl::UnavailableError("the scheduler has stopped");
    const int waiting = published_.waiting_requests + inbox_.num_requests;
    if (waiting + count > options_.max_queued_requests) {
      return resource_exhausted("queue full: ", waiting, " of ", options_.max_queued_requests, " places taken");
    }
    id = next_id_;
    next_id_ += static_cast<uint64_t>(count);
    inbox_.num_requests += count;
    inbox_.arrivals.push_back(std::make_unique<RequestGroup>(id, std::move(request), std::move(on_output), tokenizer_,
                                                             runner_.config().eos_token_ids, max_tokens()));
  }
  wake_.notify_one();
  return id;
}

void SchedulerLoop::cancel(uint64_t id) {
  send([id](Inbox& inbox) { inbox.cancels.push_back(id); });
}

SchedulerStats SchedulerLoop::stats() const {
  const std::lock_guard lock(mutex_);
  SchedulerStats stats = published_;
  stats.waiting_requests += inbox_.num_requests;
  return stats;
}

Status SchedulerLoop::health() const {
  const std::lock_guard lock(mutex_);
  return health_;
}

void SchedulerLoop::run_between_steps(const std::function<void()>& task) {
  if (is_own_thread()) return task();  // a callback: the step's books are closed
  std::future<void> done;
  {
    std::unique_lock lock(mutex_);
    if (has_ended_) {
      lock.unlock();
      const std::lock_guard late(late_mutex_);
      return task();
    }
    auto packaged = std::make_shared<std::packaged_task<void()>>(task);
    done = packaged->get_future();
    inbox_.tasks.emplace_back([packaged = std::move(packaged)] { (*packaged)(); });
  }
  wake_.notify_one();
  done.get();  // what the task throws is the caller's
}

void SchedulerLoop::clear_prefix_cache() {
  run_between_steps([this] {
    if (!health().ok()) return;  // its books cannot be trusted
    cache_.clear_prefix_cache();
    publish();
  });
}

std::vector<std::string> SchedulerLoop::check() {
  std::vector<std::string> wrong;
  run_between_steps([&] {
    if (const Status status = health(); !status.ok()) {
      wrong.emplace_back(status.message());
      return;
    }
    wrong = cache_.check();
    for (std::string& line : planner_.check()) wrong.push_back(std::move(line));
  });
  return wrong;
}

void SchedulerLoop::run() {
  try {
    serve();
    while (executor_.num_in_flight() > 0) collect();
    end_all(FinishReason::kCancelled, ok_status(), /*trust_books=*/true);
    publish();
    hand_out();
    reap();
  } catch (const std::exception& error) {
    fail(error.what());
  }
  drain();
}

void SchedulerLoop::serve() {
  while (true) {
    receive();
    const auto start = SteadyClock::now();
    const double waiting_before = executor_.waiting_seconds();
    for (std::unique_ptr<RequestGroup>& group : received_.arrivals) arrive(std::move(group));
    for (const uint64_t id : received_.cancels) {
      if (const auto group = groups_.find(id); group != groups_.end()) {
        end_group(*group->second, FinishReason::kCancelled);
      }
    }
    end_overdue();
    for (std::function<void()>& task : received_.tasks) std::exchange(task, nullptr)();
    if (received_.stop) return;
    while (executor_.num_in_flight() < options_.steps_in_flight && launch()) {
    }
    if (executor_.num_in_flight() > 0) {
      collect();
    } else if (!planner_.idle()) {
      fail_stuck();
    }
    totals_.device = runner_.step_times();
    publish();
    hand_out();
    reap();
    totals_.host_seconds += std::chrono::duration<double>(SteadyClock::now() - start).count() -
                            (executor_.waiting_seconds() - waiting_before);
  }
}

void SchedulerLoop::end_all(FinishReason reason, const Status& status, bool trust_books) {
  for (const auto& [id, group] : groups_) {
    for (const std::unique_ptr<Answer>& answer : group->answers()) {
      if (answer->has_ended) continue;
      group->end(*answer, reason, status);
      if (trust_books) leave(*answer);
    }
  }
}

void SchedulerLoop::fail(const std::string& what) {
  const Status status = absl::InternalError(str_cat("the engine has failed: ", what));
  log_error(str_cat(status.message()));
  {
    const std::lock_guard lock(mutex_);
    health_ = status;
  }
  try {
    end_all(FinishReason::kError, status, /*trust_books=*/false);
  } catch (const std::exception& error) {
    log_error(str_cat("while answering what was in flight: ", error.what()));
  }
  {
    const std::lock_guard lock(mutex_);
    published_.running_requests = published_.waiting_requests = 0;
  }
  hand_out();  // the groups stay: the planner's lists name them
}

void SchedulerLoop::drain() {
  while (true) {
    // At first what serve() had received and not come to.
    const Status health = this->health();
    for (std::unique_ptr<RequestGroup>& group : received_.arrivals) {
      if (!group) continue;
      group->set_outbox(&outbox_);
      const FinishReason reason = health.ok() ? FinishReason::kCancelled : FinishReason::kError;
      for (const std::unique_ptr<Answer>& answer : group->answers()) group->end(*answer, reason, health);
      hand_out();
    }
    for (const std::function<void()>& task : received_.tasks) {
      if (task) task();
    }
    const std::lock_guard lock(mutex_);
    received_ = std::exchange(inbox_, Inbox());
    if (received_.arrivals.empty() && received_.tasks.empty()) {
      has_ended_ = true;
      return;
    }
  }
}

void SchedulerLoop::audit() {
  needs_audit_ = false;
  const std::vector<std::string> wrong = cache_.repair();
  if (wrong.empty()) return;
  constexpr size_t kMostLines = 10;
  for (size_t i = 0; i < std::min(kMostLines, wrong.size()); ++i) log_error(str_cat("KV cache: ", wrong[i]));
  log_error(str_cat("KV cache: ", wrong.size(), " defects mended; ", cache_.capacity(), " pages are left"));
  publish();
}

void SchedulerLoop::receive() {
  const auto is_busy = [&] { return executor_.num_in_flight() > 0 || !planner_.idle(); };
  if (!is_busy() && needs_audit_) audit();
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [&] { return !inbox_.empty() || is_busy(); });
  published_.waiting_requests += inbox_.num_requests;  // until publish() counts them
  received_ = std::exchange(inbox_, Inbox());
}

void SchedulerLoop::arrive(std::unique_ptr<RequestGroup> group) {
  group->set_outbox(&outbox_);
  if (group->deadline()) with_deadline_.push_back(group->id());
  RequestGroup& known = *(groups_[group->id()] = std::move(group));
  for (const std::unique_ptr<Answer>& answer : known.answers()) {
    if (trace_) trace_->arrived(*answer);
    if (!fit_to_cache(*answer)) continue;
    planner_.add(answer.get());
  }
}

bool SchedulerLoop::fit_to_cache(Answer& answer) {
  // The cache holds less than when the request was taken only if it has lost pages.
  const auto room =
      static_cast<int>(std::min<int64_t>(answer.max_tokens, int64_t{cache_.capacity()} * cache_.page_size()));
  if (answer.num_prompt_tokens < room) {
    answer.completion.limit(room - answer.num_prompt_tokens);
    answer.max_tokens = room;
    return true;
  }
  answer.group->end(answer, FinishReason::kError,
                    resource_exhausted("prompt: ", answer.num_prompt_tokens,
                                       " tokens, but the KV cache has lost pages and holds ", room));
  if (trace_) trace_->ended(answer, to_string(answer.end_reason));
  answer.state = Request::State::kFinished;
  ++totals_.finished_requests;
  ending_.push_back(answer.group->id());
  return false;
}

void SchedulerLoop::on_plan_event(PlanEvent event, Request& request) {
  if (event == PlanEvent::kRetracted) {
    ++totals_.retractions;
    if (trace_) trace_->retracted(request);
    return;
  }
  if (request.num_retractions == 0) {
    auto& answer = static_cast<Answer&>(request);
    answer.stats.queue_seconds = answer.group->seconds_since_arrival();
    if (answer.index == 0) totals_.prompt_tokens += request.num_prompt_tokens;  // siblings share it
  }
  if (trace_) trace_->admitted(request);
}

bool SchedulerLoop::launch() {
  const StepPlan plan = planner_.plan();
  if (plan.empty()) return false;
  const auto begin = SteadyClock::now();
  executor_.launch(plan);
  ++totals_.steps;
  needs_audit_ = true;
  totals_.computed_tokens += plan.num_tokens();
  if (trace_) {
    trace_->step(plan, begin, SteadyClock::now(), planner_,
                 {.free = cache_.num_free(), .cached = cache_.num_cached(), .total = cache_.capacity()},
                 cache_.num_evicted());
  }
  return true;
}

void SchedulerLoop::collect() {
  StatusOr<std::vector<StepExecutor::Sampled>> collected = executor_.collect();
  // Requests and prefix cache hold K and V that the device may not have computed: nothing can go on with them.
  if (!collected.ok()) throw InvariantError(std::string(collected.status().message()));
  std::vector<StepExecutor::Sampled>& step = *collected;
  for (size_t i = 0; i < step.size(); ++i) {
    if (i + 2 * kPrefetchDistance < step.size()) {
      prefetch(static_cast<Answer*>(step[i + 2 * kPrefetchDistance].request));
    }
    if (i + kPrefetchDistance < step.size())
      static_cast<Answer*>(step[i + kPrefetchDistance].request)->prefetch_parts();
    StepExecutor::Sampled& sampled = step[i];
    auto& answer = static_cast<Answer&>(*sampled.request);
    const bool has_ended = answer.state == Request::State::kFinished;
    planner_.on_token(&answer, sampled.token.ok() ? sampled.token->token : 0);
    if (has_ended) continue;
    if (!sampled.token.ok()) {
      end(answer, FinishReason::kError, sampled.token.status());
      continue;
    }
    ++totals_.generated_tokens;
    if (answer.num_generated() == 1 && answer.index == 0) totals_.cached_tokens += std::max(0, answer.cached_tokens);
    if (answer.group->on_token(answer, *std::move(sampled.token))) leave(answer);
  }
}

void SchedulerLoop::leave(Answer& answer) {
  if (trace_) trace_->ended(answer, to_string(answer.end_reason));
  planner_.finish(&answer);
  ++totals_.finished_requests;
  ending_.push_back(answer.group->id());
}

void SchedulerLoop::end(Answer& answer, FinishReason reason, const Status& status) {
  if (answer.state == Request::State::kFinished) return;
  answer.group->end(answer, reason, status);
  leave(answer);
}

void SchedulerLoop::end_group(RequestGroup& group, FinishReason reason) {
  for (const std::unique_ptr<Answer>& answer : group.answers()) end(*answer, reason, ok_status());
}

void SchedulerLoop::end_overdue() {
  if (with_deadline_.empty()) return;
  const auto now = SteadyClock::now();
  std::erase_if(with_deadline_, [&](uint64_t id) {
    const auto group = groups_.find(id);
    if (group == groups_.end()) return true;
    if (now < *group->second->deadline()) return false;
    end_group(*group->second, FinishReason::kTimeout);
    return true;
  });
}

void SchedulerLoop::fail_stuck() {
  Request* const request = planner_.running().empty() ? planner_.waiting()[0] : planner_.running()[0];
  end(static_cast<Answer&>(*request), FinishReason::kError,
      absl::InternalError("the scheduler could not plan a step for it"));
}

void SchedulerLoop::reap() {
  std::erase_if(ending_, [&](uint64_t id) {
    const auto place = groups_.find(id);
    if (place == groups_.end()) return true;
    if (!place->second->is_over()) return place->second->num_ended() < std::ssize(place->second->answers());
    groups_.erase(place);
    return true;
  });
}

void SchedulerLoop::publish() {
  totals_.evicted_pages = cache_.num_evicted();
  {
    const std::lock_guard lock(mutex_);
    published_ = totals_;
    published_.running_requests = static_cast<int>(planner_.running().size());
    published_.waiting_requests = static_cast<int>(planner_.waiting().size());
    published_.total_pages = cache_.capacity();
    published_.free_pages = cache_.num_free();
    published_.cached_pages = cache_.num_cached();
  }
}

void SchedulerLoop::hand_out() {
  GenerateOutput token_piece;
  token_piece.tokens.resize(1);
  for (Delivery& delivery : outbox_) {
    try {
      if (delivery.output) {
        (*delivery.on_output)(*delivery.output);
        continue;
      }
      token_piece.id = delivery.id;
      token_piece.index = delivery.index;
      token_piece.tokens[0] = delivery.token;
      token_piece.text.swap(delivery.text);
      (*delivery.on_output)(token_piece);
    } catch (const std::exception& error) {
      log_warning(str_cat("request ", delivery.id, " is cancelled: its callback threw: ", error.what()));
      cancel(delivery.id);
    }
  }
  outbox_.clear();
}

}  // namespace onepass
