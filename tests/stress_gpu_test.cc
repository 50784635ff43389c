// Hundreds of requests over scarce pages on a GPU.
#include "scheduler_stress.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

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

// Few requests at once, which go through the kernel for all layers: steps in flight, cancelled ones, prompts in
// between.
TEST(StressOnGpu, EndsEveryRequestThatOneKernelDecodes) {
  const StatusOr<GpuInfo> gpu = query_gpu(0);
  if (!gpu.ok()) GTEST_SKIP() << gpu.status();
  if (!gpu->usable || gpu->compute_capability != 90) GTEST_SKIP() << "the kernel is Hopper's, found " << gpu->name;
  const std::string model = testing::TempDir() + "onepass_stress_stack_" + std::to_string(::getpid());
  std::filesystem::create_directories(model);
  std::ofstream(model + "/config.json") << R"({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 500, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "bfloat16"})";
  {
    SchedulerStress stress({.model = model,
                            .has_tokenizer = false,
                            .device = {.kind = DeviceKind::kCuda},
                            .num_requests = 200,
                            .dummy_weights = true,
                            .deterministic = false});
    stress.run({.page_size = 16, .max_requests = 3, .max_tokens_per_step = 128}, {.steps_in_flight = 2});
    stress.run({.page_size = 64, .max_requests = 6, .max_tokens_per_step = 512}, {.steps_in_flight = 2});
    stress.run({.page_size = 32, .max_requests = 4, .cuda_graphs = false, .max_tokens_per_step = 200},
               {.steps_in_flight = 1});
  }
  std::filesystem::remove_all(model);
}

}  // namespace
}  // namespace onepass
