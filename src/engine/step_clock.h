// How long a device works on steps, and how long it waits between them.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

#include "tensor/cuda/cuda_stream.h"
#include "tensor/device.h"

namespace onepass {

struct StepTimes {
  int64_t steps = 0;
  double busy_seconds = 0.0;
  // Between steps of which the later one was started while the earlier one was in flight, the copy of its inputs
  // included: what the host costs a device that has work. 0 on the CPU, which computes a step while it is started.
  double idle_seconds = 0.0;
  int64_t idle_steps = 0;  // before which that was more than kIdleSeconds

  static constexpr double kIdleSeconds = 10e-6;
};

// Used by one thread at a time, for at most kMostInFlight steps that are started and not waited for.
class StepClock {
 public:
  StepClock() = default;
  static StatusOr<StepClock> create(const Device& device);

  static constexpr int kMostInFlight = 2;

  // Before and after a step's work is put on `stream`, once its inputs are on their way (or is done, on the CPU). A
  // start without a stop is forgotten with the next start.
  Status start(const CudaStream& stream);
  Status stop(const CudaStream& stream);
  // Waits until the oldest step is done, whose errors show here, and counts it.
  Status wait();

  const StepTimes& times() const { return times_; }

 private:
  using HostClock = std::chrono::steady_clock;
  struct Step {
    CudaEvent start, stop;
    HostClock::time_point host_start, host_stop;
    bool follows = false;  // the step before it was in flight when it was started
  };
  // One more than are in flight: the last one that is done ends the pause before the next.
  static constexpr int kSteps = kMostInFlight + 1;

  bool is_on_gpu_ = false;
  std::array<Step, kSteps> steps_;
  int oldest_ = 0;  // in flight
  int num_in_flight_ = 0;
  StepTimes times_;
};

}  // namespace onepass
