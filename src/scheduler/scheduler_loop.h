// The scheduler's thread: receives, plans, computes, hands out.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "scheduler/request_group.h"
#include "scheduler/scheduler.h"
#include "scheduler/step_executor.h"
#include "scheduler/step_planner.h"
#include "scheduler/trace.h"

namespace onepass {

// The thread and all that it alone touches; what other threads send it comes through the inbox.
class SchedulerLoop {
 public:
  // `trace` may be null; the rest as for Scheduler::create.
  SchedulerLoop(ModelRunner& runner, const Tokenizer* tokenizer, const SchedulerOptions& options,
                std::unique_ptr<Trace> trace);
  ~SchedulerLoop();
  SchedulerLoop(const SchedulerLoop&) = delete;
  SchedulerLoop& operator=(const SchedulerLoop&) = delete;

  // From any thread; as in Scheduler.
  const ModelRunner& runner() const { return runner_; }
  bool has_tokenizer() const { return tokenizer_ != nullptr; }
  int max_tokens() const;  // of one sequence: what context and cache hold
  StatusOr<uint64_t> submit(GenerateRequest request, OutputCallback on_output);
  void cancel(uint64_t id);
  SchedulerStats stats() const;
  // Runs `task` on the thread, between two steps, and waits for it; on the caller's once the thread has ended.
  void run_between_steps(const std::function<void()>& task);
  void clear_prefix_cache();
  std::vector<std::string> check();
  Status health() const;
  Status stop();

 private:
  struct Inbox {
    std::vector<std::unique_ptr<RequestGroup>> arrivals;
    std::vector<uint64_t> cancels;
    std::vector<std::function<void()>> tasks;
    int num_requests = 0;  // of the arrivals
    bool stop = false;

    bool empty() const { return arrivals.empty() && cancels.empty() && tasks.empty() && !stop; }
  };
  void send(const std::function<void(Inbox&)>& change);
  bool is_own_thread() const { return std::this_thread::get_id() == thread_.get_id(); }
  void run();
  // Steps until stop().
  void serve();
  // Everything left ends with `reason`; the planner's books are closed with it if they can still be trusted.
  void end_all(FinishReason reason, const Status& status, bool trust_books);
  // An exception ended serve(): a broken invariant or no memory left. What is there ends with an error, nothing comes
  // in any more.
  void fail(const std::string& what);
  // What came while serve() ended. Marks the thread as ended.
  void drain();
  // Audits the cache once it is idle after work, and mends it: a leaked page costs that page, not the server.
  void audit();
  // Takes the inbox; blocks while there is nothing to do.
  void receive();
  void arrive(std::unique_ptr<RequestGroup> group);
  // Cuts a new answer to what the cache holds; false, and it has ended with an error, when its prompt does not fit.
  bool fit_to_cache(Answer& answer);
  void on_plan_event(PlanEvent event, Request& request);
  // Plans a step and starts it; false when there is none.
  bool launch();
  // Hands out the tokens of the oldest step.
  void collect();
  // The answer has ended: its pages are free.
  void leave(Answer& answer);
  void end(Answer& answer, FinishReason reason, const Status& status);
  void end_group(RequestGroup& group, FinishReason reason);
  void end_overdue();
  // Requests are there, but no step can be planned and none is under way: a defect. One of them fails, so that the rest
  // go on.
  void fail_stuck();
  // Forgets groups that are over.
  void reap();
  // Shows the counts to other threads.
  void publish();
  // Hands out the pieces. A request whose callback throws is cancelled.
  void hand_out();

  ModelRunner& runner_;
  const Tokenizer* const tokenizer_;  // may be null
  const SchedulerOptions options_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Inbox inbox_;               // guarded by mutex_
  SchedulerStats published_;  // guarded by mutex_
  uint64_t next_id_ = 1;      // guarded by mutex_
  bool is_stopped_ = false;   // guarded by mutex_: nothing is submitted any more
  bool has_ended_ = false;    // guarded by mutex_: the thread touches nothing any more
  Status health_;             // guarded by mutex_

  std::mutex late_mutex_;  // held by tasks that run after the thread's end

  // The thread's own.
  Inbox received_;
  std::unique_ptr<Trace> trace_;  // may be null
  KvCacheManager cache_;
  StepPlanner planner_;
  StepExecutor executor_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<RequestGroup>> groups_;
  std::vector<Delivery> outbox_;
  std::vector<uint64_t> with_deadline_;
  bool needs_audit_ = false;      // steps have run since the last one
  std::vector<uint64_t> ending_;  // groups of which an answer has ended
  SchedulerStats totals_;         // the counts since the start

  std::thread thread_;  // last: it uses the rest
};

}  // namespace onepass
