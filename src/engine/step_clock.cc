#include "engine/step_clock.h"

#include "base/check.h"

namespace onepass {

StatusOr<StepClock> StepClock::create(const Device& device) {
  StepClock clock;
  clock.is_on_gpu_ = device.kind == DeviceKind::kCuda;
  if (!clock.is_on_gpu_) return clock;
  for (Step& step : clock.steps_) {
    ONEPASS_ASSIGN_OR_RETURN(step.start, CudaEvent::create());
    ONEPASS_ASSIGN_OR_RETURN(step.stop, CudaEvent::create());
  }
  return clock;
}

Status StepClock::start(const CudaStream& stream) {
  ONEPASS_CHECK_LE(num_in_flight_ + 1, kMostInFlight);
  Step& step = steps_[(oldest_ + num_in_flight_) % kSteps];
  step.follows = num_in_flight_ > 0;
  step.host_start = HostClock::now();
  return is_on_gpu_ ? step.start.record(stream) : ok_status();
}

Status StepClock::stop(const CudaStream& stream) {
  Step& step = steps_[(oldest_ + num_in_flight_) % kSteps];
  step.host_stop = HostClock::now();
  if (is_on_gpu_) ONEPASS_RETURN_IF_ERROR(step.stop.record(stream));
  ++num_in_flight_;
  return ok_status();
}

Status StepClock::wait() {
  ONEPASS_CHECK_GE(num_in_flight_, 1);
  const Step& step = steps_[oldest_];
  const Step& before = steps_[(oldest_ + kSteps - 1) % kSteps];
  oldest_ = (oldest_ + 1) % kSteps;
  --num_in_flight_;
  ++times_.steps;
  if (!is_on_gpu_) {
    times_.busy_seconds += std::chrono::duration<double>(step.host_stop - step.host_start).count();
    return ok_status();
  }
  ONEPASS_ASSIGN_OR_RETURN(const double busy, step.stop.seconds_since(step.start));
  times_.busy_seconds += busy;
  if (!step.follows) return ok_status();
  ONEPASS_ASSIGN_OR_RETURN(const double idle, step.start.seconds_since(before.stop));
  times_.idle_seconds += idle;
  if (idle > StepTimes::kIdleSeconds) ++times_.idle_steps;
  return ok_status();
}

}  // namespace onepass
