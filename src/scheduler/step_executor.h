// A planned step on the device: forward pass, sampling, page copies.
#pragma once

#include <deque>
#include <vector>

#include "engine/model_runner.h"
#include "engine/sampler.h"
#include "scheduler/step_planner.h"

namespace onepass {

// Steps run in the order of their launch, and a step's sampled tokens feed the next one without passing by the host,
// which learns them when it collects the step. On the CPU launch() does the work before it returns.
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
  int num_in_flight() const { return static_cast<int>(results_.size()); }
  // The tokens of the oldest step in flight. REQUIRES: there is one.
  std::vector<Sampled> collect();

  double device_seconds() const { return device_seconds_; }  // of all steps so far, sampling included

 private:
  // Forward pass, sampling and page copies of the batch.
  Status run(const StepPlan& plan, std::vector<Sampled>& sampled);

  ModelRunner& runner_;
  Batch batch_;                       // scratch, and of those that sample:
  std::vector<int> slots_, rows_;     // their slots and rows of logits
  std::vector<int32_t> last_tokens_;  // by slot: what the request in it has sampled last
  std::deque<std::vector<Sampled>> results_;
  double device_seconds_ = 0.0;
};

}  // namespace onepass
