// A planned step on the device: forward pass, sampling, page copies.
#pragma once

#include <deque>
#include <vector>

#include "engine/model_runner.h"
#include "engine/sampler.h"
#include "scheduler/step_planner.h"

namespace onepass {

// Steps run in the order of their launch, and a step's sampled tokens feed the next one without passing by the host,
// which learns them when it collects the step. On the CPU launch() does the work before it returns; a GPU does it
// meanwhile.
//
// Used by one thread at a time.
class StepExecutor {
 public:
  // `runner` outlives it.
  explicit StepExecutor(ModelRunner& runner);

  struct Sampled {
    Request* request;
    StatusOr<SampledToken> token;
  };

  // Starts a step. Requests that sample have a Sampler.
  void launch(const StepPlan& plan);
  int num_in_flight() const { return static_cast<int>(steps_.size()); }
  // The tokens of the oldest step in flight. An error is the device's: what the step should have stored cannot be
  // trusted either, so no later step can. REQUIRES: there is one.
  StatusOr<std::vector<Sampled>> collect();

  // In which the caller's thread did the device's work, on the CPU, or waited for it.
  double waiting_seconds() const { return waiting_seconds_; }

 private:
  struct Step {
    std::vector<Request*> requests;  // that sample, in the order of their work
    bool is_launched = false;
    Status status;  // of its launch
  };

  ModelRunner& runner_;
  Batch batch_;                   // scratch, and of those that sample:
  std::vector<SampleWork> work_;  // their work, in the order of the rows of logits
  std::deque<Step> steps_;
  double waiting_seconds_ = 0.0;
};

}  // namespace onepass
