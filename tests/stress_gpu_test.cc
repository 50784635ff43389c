// Hundreds of requests over scarce pages on a GPU.
#include "scheduler_stress.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

// Replayed and eager decode steps, with one step in flight and with two, over small and large pages.
void stress_gpu(const std::string& model, bool has_tokenizer) {
  const StatusOr<GpuInfo> gpu = query_gpu(0);
  if (!gpu.ok()) GTEST_SKIP() << gpu.status();
  if (!gpu->usable) GTEST_SKIP() << "no code for " << gpu->name;
  SchedulerStress stress(
      {.model = model, .has_tokenizer = has_tokenizer, .device = {.kind = DeviceKind::kCuda}, .num_requests = 512});
  stress.run({.page_size = 16, .max_requests = 48, .max_tokens_per_step = 128}, {.steps_in_flight = 1});
  stress.run({.page_size = 64, .max_requests = 100, .max_tokens_per_step = 512}, {.steps_in_flight = 2});
  stress.run({.page_size = 8, .max_requests = 24, .cuda_graphs = false, .max_tokens_per_step = 200},
             {.steps_in_flight = 2});
}

TEST(StressOnGpu, EachAnswerIsWhatItIsAlone) { stress_gpu("models/shakespeare-1m", true); }

// Another head dimension, norms of q and k, and no tokenizer.
TEST(StressOnGpu, EachAnswerIsWhatItIsAloneWithHeadsOf128) {
  stress_gpu("tests/golden/models/qwen3-hd128-bf16", false);
}

}  // namespace
}  // namespace onepass
