#include "tensor/step_upload.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "tensor/cuda/cuda_copy.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

TEST(StepUploadTest, StepsOfTheSameSizesFindTheirArraysAtTheSameAddresses) {
  StepUpload upload = *StepUpload::create(1024, Device());
  const std::vector<int32_t> ids = {1, 2, 3};
  const std::vector<int64_t> slots = {4, 5};
  upload.begin();
  const int32_t* const first_ids = upload.add<int32_t>(ids);
  const int64_t* const first_slots = upload.add<int64_t>(slots);
  ASSERT_TRUE(upload.send(Stream()).ok());
  EXPECT_EQ(std::vector(first_ids, first_ids + 3), ids);
  EXPECT_EQ(std::vector(first_slots, first_slots + 2), slots);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first_slots) % StepUpload::kAlignment, 0u);

  const std::vector<int32_t> others = {7, 8, 9};
  upload.begin();
  EXPECT_EQ(upload.add<int32_t>(others), first_ids);
  const StepUpload::Array<int64_t> array = upload.reserve<int64_t>(2);
  EXPECT_EQ(array.device, first_slots);
  array.host[1] = 42;
  ASSERT_TRUE(upload.send(Stream()).ok());
  EXPECT_EQ(first_ids[2], 9);
  EXPECT_EQ(first_slots[1], 42);
}

TEST(StepUploadTest, GpuReceivesEachStepInTurn) {
  const StatusOr<GpuInfo> gpu = query_gpu(0);
  if (!gpu.ok()) GTEST_SKIP() << gpu.status();
  ASSERT_TRUE(set_current_gpu(0).ok());
  const Stream stream{.device = {.kind = DeviceKind::kCuda}};
  StepUpload upload = *StepUpload::create(1 << 20, stream.device);
  PinnedBuffer back = *PinnedBuffer::allocate(4 * sizeof(int32_t));
  for (int step = 0; step < 5; ++step) {
    const std::vector<int32_t> values = {step, 10 * step, 100 * step, -step};
    upload.begin();
    const int32_t* const device = upload.add<int32_t>(values);
    ASSERT_TRUE(upload.send(stream).ok());
    ASSERT_TRUE(copy_async(back.data(), device, back.size(), stream.cuda).ok());
    ASSERT_TRUE(synchronize(stream.cuda).ok());
    EXPECT_EQ(std::vector(back.as<int32_t>(), back.as<int32_t>() + 4), values);
  }
}

TEST(StepUploadTest, AGraphBringsTheArraysOfEachLaunch) {
  const StatusOr<GpuInfo> gpu = query_gpu(0);
  if (!gpu.ok()) GTEST_SKIP() << gpu.status();
  ASSERT_TRUE(set_current_gpu(0).ok());
  const CudaStream cuda_stream = *CudaStream::create();
  const Stream stream{.device = {.kind = DeviceKind::kCuda}, .cuda = cuda_stream.get()};
  constexpr size_t kMost = 100'000;  // more than the copy engine's share begins with
  StepUpload upload = *StepUpload::create(kMost * sizeof(int32_t) + 64, stream.device);
  const CudaBuffer copy = *CudaBuffer::allocate(kMost * sizeof(int32_t));
  PinnedBuffer back = *PinnedBuffer::allocate(2 * kMost * sizeof(int32_t));
  upload.begin();
  const int32_t* const device = upload.reserve<int32_t>(1).device;
  const auto graph = CudaGraph::capture(cuda_stream, [&]() -> Status {
    ONEPASS_RETURN_IF_ERROR(upload.send_by_kernel(stream));
    return copy_async(copy.data(), device, copy.size(), stream.cuda);
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  ASSERT_NE(graph->first(), nullptr);
  // Two steps are queued before the first is looked at, of sizes that ask for other grids than the captured one.
  std::vector<std::vector<int32_t>> steps(2);
  for (const size_t count : {5, 1, 70'000, 100'000, 3}) {
    for (int half = 0; half < 2; ++half) {
      steps[half].resize(count);
      for (size_t i = 0; i < count; ++i) steps[half][i] = static_cast<int32_t>(3 * i + count + half);
      upload.begin();
      ASSERT_EQ(upload.add<int32_t>(steps[half]), device);
      ASSERT_TRUE(upload.send_with(*graph).ok());
      ASSERT_TRUE(graph->launch(cuda_stream).ok());
      ASSERT_TRUE(copy_async(back.as<int32_t>() + half * kMost, copy.data(), copy.size(), stream.cuda).ok());
    }
    ASSERT_TRUE(cuda_stream.synchronize().ok());
    for (int half = 0; half < 2; ++half) {
      const int32_t* const found = back.as<int32_t>() + half * kMost;
      EXPECT_TRUE(std::equal(steps[half].begin(), steps[half].end(), found)) << count << " numbers, step " << half;
    }
  }
}

TEST(StepUploadTest, RefusesMoreThanItsCapacity) {
  StepUpload upload = *StepUpload::create(64, Device());
  upload.begin();
  upload.reserve<int32_t>(16);
  EXPECT_ANY_THROW(upload.reserve<int32_t>(1));
}

}  // namespace
}  // namespace onepass
