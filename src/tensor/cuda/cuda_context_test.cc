// What asking for a GPU does to the others: a context takes hundreds of megabytes of a GPU's memory.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tensor/cuda/cuda_buffer.h"
#include "tensor/cuda/gpu_context.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

// Whether this process has a context on the GPU. Asks the driver, since the runtime makes one to answer.
bool has_context(int index) {
  using GetState = int (*)(int device, unsigned* flags, int* active);
  void* const driver = ::dlopen("libcuda.so.1", RTLD_NOW);
  const auto get_state =
      driver == nullptr ? nullptr : reinterpret_cast<GetState>(::dlsym(driver, "cuDevicePrimaryCtxGetState"));
  unsigned flags = 0;
  int active = 0;
  if (get_state == nullptr || get_state(index, &flags, &active) != 0) std::exit(3);
  return active != 0;
}

// Each statement runs in a process of its own, which has not used a GPU yet.
class CudaContextDeathTest : public testing::Test {
 protected:
  void SetUp() override {
    testing::GTEST_FLAG(death_test_style) = "threadsafe";
    const StatusOr<int> count = count_gpus();
    if (!count.ok()) GTEST_SKIP() << count.status();
    count_ = *count;
  }
  int count_ = 0;
};

TEST_F(CudaContextDeathTest, CountingMakesNone) {
  EXPECT_EXIT(std::exit(count_gpus().ok() && !has_context(0) ? 0 : 1), testing::ExitedWithCode(0), "");
}

TEST_F(CudaContextDeathTest, AskingForOneMakesOneThere) {
  EXPECT_EXIT(std::exit(query_gpu(0).ok() && has_context(0) ? 0 : 1), testing::ExitedWithCode(0), "");
}

TEST_F(CudaContextDeathTest, AskingForTheSecondLeavesTheFirstAlone) {
  if (count_ < 2) GTEST_SKIP() << "one GPU";
  EXPECT_EXIT(std::exit(query_gpu(1).ok() && has_context(1) && !has_context(0) ? 0 : 1), testing::ExitedWithCode(0),
              "");
}

// Whether the thread has a current context. By the driver, for the same reason.
bool has_current() {
  using GetCurrent = int (*)(void** context);
  void* const driver = ::dlopen("libcuda.so.1", RTLD_NOW);
  const auto get_current =
      driver == nullptr ? nullptr : reinterpret_cast<GetCurrent>(::dlsym(driver, "cuCtxGetCurrent"));
  void* context = nullptr;
  if (get_current == nullptr || get_current(&context) != 0) std::exit(3);
  return context != nullptr;
}

// Uses a GPU for a moment: 0 when all is well, and what was current before is so afterwards.
int use_for_a_moment(int index) {
  const bool before = has_current();
  {
    const CurrentGpu current(index);
    int found = -1;
    if (!current.status().ok() || cudaGetDevice(&found) != cudaSuccess || found != index) return 1;
    const StatusOr<CudaBuffer> buffer = CudaBuffer::allocate_zeroed(1000);
    if (!buffer.ok() || !has_context(index)) return 2;
  }
  return has_current() == before ? 0 : 4;
}

TEST_F(CudaContextDeathTest, OneThatIsCurrentForAMomentLeavesNothingCurrent) {
  EXPECT_EXIT(std::exit(use_for_a_moment(0)), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(std::exit(CurrentGpu(count_).status().ok() ? 1 : 0), testing::ExitedWithCode(0), "");
}

TEST_F(CudaContextDeathTest, OneThatIsCurrentForAMomentLeavesTheUsersCurrent) {
  const auto with_another = [] {
    if (cudaSetDevice(0) != cudaSuccess || !has_current()) return 5;
    const int result = use_for_a_moment(0);
    int found = -1;
    return cudaGetDevice(&found) == cudaSuccess && found == 0 ? result : 6;
  };
  EXPECT_EXIT(std::exit(with_another()), testing::ExitedWithCode(0), "");
}

TEST_F(CudaContextDeathTest, TheSecondThatIsCurrentForAMomentLeavesTheFirstAlone) {
  if (count_ < 2) GTEST_SKIP() << "one GPU";
  EXPECT_EXIT(std::exit(use_for_a_moment(1) == 0 && !has_context(0) ? 0 : 1), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace onepass
