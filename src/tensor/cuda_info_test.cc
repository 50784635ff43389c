#include "tensor/cuda_info.h"

#include <gtest/gtest.h>

namespace onepass {
namespace {

// Runs on any machine: what is said must hold together, with a GPU, without one, and in a binary without CUDA.
TEST(CudaInfo, SaysWhatIsThereOrWhyNot) {
  const CudaInfo info = query_cuda();
  EXPECT_EQ(info.problem.empty(), !info.gpus.empty());
  EXPECT_EQ(info.problem.find('\n'), std::string::npos);
  if (!info.compiled) {
    EXPECT_TRUE(info.gpus.empty());
    EXPECT_EQ(info.runtime_version, 0);
    return;
  }
  EXPECT_GE(info.runtime_version, 12000);
  for (const GpuInfo& gpu : info.gpus) {
    EXPECT_FALSE(gpu.name.empty());
    EXPECT_GE(gpu.multiprocessors, 1);
    EXPECT_GT(gpu.memory_bytes, int64_t{1} << 28);
    EXPECT_GE(gpu.shared_memory_bytes, 48 << 10);
    EXPECT_EQ(gpu.usable, gpu.compute_capability == 90) << gpu.name;  // sm_90a runs on compute capability 9.0 alone
  }
}

TEST(CudaInfo, AsksTwiceWithTheSameAnswer) {
  const CudaInfo first = query_cuda();
  const CudaInfo second = query_cuda();
  EXPECT_EQ(first.problem, second.problem);
  EXPECT_EQ(first.gpus.size(), second.gpus.size());
}

}  // namespace
}  // namespace onepass
