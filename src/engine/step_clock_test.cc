#include "engine/step_clock.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tensor/cuda/cuda_copy.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

using std::chrono::milliseconds;

TEST(StepClockTest, TheCpuIsBusyFromStartToStop) {
  StepClock clock = *StepClock::create(Device());
  const CudaStream none;
  for (int step = 0; step < 5; ++step) {
    ASSERT_TRUE(clock.start(none).ok());  // forgotten
    std::this_thread::sleep_for(milliseconds(2));
    ASSERT_TRUE(clock.start(none).ok());
    std::this_thread::sleep_for(milliseconds(3));
    ASSERT_TRUE(clock.stop(none).ok());
    ASSERT_TRUE(clock.wait().ok());
  }
  EXPECT_EQ(clock.times().steps, 5);
  EXPECT_GE(clock.times().busy_seconds, 5 * 3e-3);
  EXPECT_EQ(clock.times().idle_seconds, 0.0);
}

TEST(StepClockTest, RefusesMoreStepsThanItHasPlacesFor) {
  StepClock clock = *StepClock::create(Device());
  const CudaStream none;
  for (int step = 0; step < StepClock::kMostInFlight; ++step) {
    ASSERT_TRUE(clock.start(none).ok());
    ASSERT_TRUE(clock.stop(none).ok());
  }
  EXPECT_ANY_THROW((void)clock.start(none));
}

// The host is late with the second step by 5 ms, in which the first one is over.
TEST(StepClockTest, AGpuIsIdleBetweenStepsThatTheHostIsLateWith) {
  const StatusOr<GpuInfo> gpu = query_gpu(0);
  if (!gpu.ok()) GTEST_SKIP() << gpu.status();
  ASSERT_TRUE(set_current_gpu(0).ok());
  StepClock clock = *StepClock::create({.kind = DeviceKind::kCuda});
  const CudaStream stream = *CudaStream::create();
  ASSERT_TRUE(clock.start(stream).ok());
  ASSERT_TRUE(clock.stop(stream).ok());
  std::this_thread::sleep_for(milliseconds(5));
  ASSERT_TRUE(clock.start(stream).ok());
  ASSERT_TRUE(clock.stop(stream).ok());
  ASSERT_TRUE(clock.wait().ok());
  ASSERT_TRUE(clock.wait().ok());
  EXPECT_EQ(clock.times().steps, 2);
  EXPECT_GE(clock.times().idle_seconds, 4e-3);
  EXPECT_LE(clock.times().busy_seconds, 4e-3);
  EXPECT_EQ(clock.times().idle_steps, 1);
}

}  // namespace
}  // namespace onepass
