// A trace of the scheduler's steps for https://ui.perfetto.dev or chrome://tracing: one lane for the engine's steps,
// one for each request, which shows what it waited for and when it was computed, and counters of tokens, requests,
// pages.
#pragma once

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "scheduler/step_planner.h"

namespace onepass {

// The JSON array format of Chrome's Trace Event Format, which a viewer reads even if its end is missing. Used by one
// thread at a time.
class Trace {
 public:
  using Clock = std::chrono::steady_clock;

  static StatusOr<std::unique_ptr<Trace>> create(const std::string& path);
  // Writes the end. What could not be written is lost; close() says so.
  ~Trace();
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  void arrived(const Request& request);
  void admitted(const Request& request);
  void retracted(const Request& request);
  void ended(const Request& request, std::string_view reason);

  struct Pages {
    int free = 0;
    int cached = 0;
    int total = 0;
  };
  // A step that ran from `begin` to `end`, and the queue at its end.
  void step(const StepPlan& plan, Clock::time_point begin, Clock::time_point end, const StepPlanner& planner,
            const Pages& pages, int64_t evicted_pages);

  Status close();

 private:
  explicit Trace(std::FILE* file, std::string path);
  double micros(Clock::time_point time) const;
  // One event: "name", phase, lane, time, and more fields (", \"dur\":1").
  void event(std::string_view name, char phase, int process, uint64_t lane, double time, const std::string& more = {});
  struct Wait {
    double since = 0.0;
    WaitReason reason = WaitReason::kStep;
    // The planner's reason since `next_since`, for `next_steps` steps: it counts once it proves steady.
    WaitReason next = WaitReason::kStep;
    double next_since = 0.0;
    int next_steps = 0;
  };
  // After a step that was planned without the request.
  void update_wait(const Request& request, Wait& wait, double now);
  void write_wait(const Request& request, const Wait& wait, double end);
  void end_wait(const Request& request, double now);

  std::FILE* file_;
  const std::string path_;
  const Clock::time_point start_ = Clock::now();
  absl::flat_hash_map<uint64_t, Wait> waits_;  // of waiting requests, by id
  int64_t evicted_pages_ = 0;
  int64_t num_steps_ = 0;
};

}  // namespace onepass
