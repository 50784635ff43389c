// The kernel for all layers against the layers one by one, on models of random shapes and weights.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/engine.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

struct StackModel {
  std::string name;
  nlohmann::json config;
  int max_requests = 8;
  int page_size = 64;
  int longest = 300;  // tokens before the first decode
};

nlohmann::json config(const std::string& architecture, const std::string& type, int hidden, int intermediate,
                      int layers, int heads, int kv_heads, int head_dim, const std::string& dtype) {
  return {{"architectures", {architecture}},   {"model_type", type},          {"hidden_size", hidden},
          {"intermediate_size", intermediate}, {"num_hidden_layers", layers}, {"num_attention_heads", heads},
          {"num_key_value_heads", kv_heads},   {"head_dim", head_dim},        {"vocab_size", 1000},
          {"max_position_embeddings", 8192},   {"rms_norm_eps", 1e-6},        {"rope_theta", 10000.0},
          {"tie_word_embeddings", true},       {"hidden_act", "silu"},        {"torch_dtype", dtype}};
}

std::vector<StackModel> stack_models() {
  const auto qwen3 = [](int hidden, int intermediate, int layers, int heads, int kv_heads, int head_dim,
                        const char* dtype) {
    return config("Qwen3ForCausalLM", "qwen3", hidden, intermediate, layers, heads, kv_heads, head_dim, dtype);
  };
  const auto llama = [](int hidden, int intermediate, int layers, int heads, int kv_heads, int head_dim,
                        const char* dtype) {
    return config("LlamaForCausalLM", "llama", hidden, intermediate, layers, heads, kv_heads, head_dim, dtype);
  };
  nlohmann::json windowed = config("MistralForCausalLM", "mistral", 512, 1024, 3, 8, 4, 64, "bfloat16");
  windowed["sliding_window"] = 100;
  nlohmann::json window_of_one = windowed;
  window_of_one["sliding_window"] = 1;
  nlohmann::json windows_by_layer = config("Qwen2ForCausalLM", "qwen2", 512, 1024, 4, 8, 4, 64, "float16");
  windows_by_layer["use_sliding_window"] = true;
  windows_by_layer["sliding_window"] = 70;
  windows_by_layer["max_window_layers"] = 2;
  nlohmann::json biased = config("Qwen2ForCausalLM", "qwen2", 896, 4864, 3, 14, 2, 64, "bfloat16");
  return {{"Qwen3Shape", qwen3(1024, 3072, 4, 16, 8, 128, "bfloat16"), 8, 64, 1300},
          {"Qwen3Half", qwen3(1024, 3072, 3, 16, 8, 128, "float16"), 8, 16, 200},
          {"LlamaShape", llama(4096, 14336, 2, 32, 8, 128, "bfloat16"), 2, 64, 3000},
          {"OneLayer", llama(256, 512, 1, 4, 2, 64, "float16"), 8, 64, 300},
          {"TwoLayersSmallPages", qwen3(512, 1536, 2, 8, 1, 128, "float16"), 8, 16, 300},
          {"ManyHeadsOfOne", llama(1024, 2816, 5, 16, 16, 64, "float16"), 4, 256, 700},
          {"ThreeRowsPagesOf48", llama(256, 512, 3, 4, 2, 64, "float16"), 3, 48, 300},
          {"Windowed", windowed, 8, 16, 500},
          {"WindowOfOne", window_of_one, 4, 16, 300},
          {"WindowsByLayer", windows_by_layer, 4, 64, 500},
          {"Biased", biased, 8, 64, 2000}};
}

class LayerStackOnGpu : public testing::TestWithParam<StackModel> {
 protected:
  void SetUp() override {
    const StatusOr<GpuInfo> gpu = query_gpu(0);
    if (!gpu.ok()) GTEST_SKIP() << gpu.status();
    if (!gpu->usable || gpu->compute_capability != 90) GTEST_SKIP() << "the kernel is Hopper's, found " << gpu->name;
    dir_ = testing::TempDir() + "onepass_layer_stack_" + GetParam().name + "_" + std::to_string(::getpid());
    std::filesystem::create_directories(dir_);
    std::ofstream(dir_ + "/config.json") << GetParam().config.dump();
  }
  void TearDown() override {
    if (!dir_.empty()) std::filesystem::remove_all(dir_);
  }

  ModelRunnerOptions engine_options(bool layer_stack, bool cuda_graphs) const {
    return {.model_dir = dir_,
            .device = {.kind = DeviceKind::kCuda},
            .dummy_weights = true,
            .page_size = GetParam().page_size,
            .max_requests = GetParam().max_requests,
            .kv_tokens = 16384,
            .plan_file = testing::TempDir() + "onepass_layer_stack_plans",
            .cuda_graphs = cuda_graphs,
            .layer_stack = layer_stack,
            .max_tokens_per_step = 4096,
            .max_outputs_per_step = 8};
  }
  std::unique_ptr<Engine> make(bool layer_stack, bool cuda_graphs) const {
    auto engine = Engine::create(engine_options(layer_stack, cuda_graphs));
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? std::move(*engine) : nullptr;
  }

  // The logits of all decodes: of steps of different numbers of sequences, which grow from different lengths.
  std::vector<float> decode(Engine& engine) const {
    std::mt19937 random(7);
    const auto draw = [&](int n) { return static_cast<int>(random() % n); };
    std::vector<float> all;
    std::vector<Sequence> sequences;
    for (int i = 0; i < GetParam().max_requests; ++i) {
      sequences.push_back(*engine.open());
      const int length = i == 0 ? GetParam().longest : 1 + draw(std::min(GetParam().longest, 1000));
      for (int j = 0; j < length; ++j) sequences[i].tokens.push_back(draw(1000));
      EXPECT_TRUE(engine.prefill(sequences[i]).ok());
      for (int step = 0; step < 4; ++step) {
        std::vector<Engine::Work> work;
        for (Sequence& sequence : sequences) {
          sequence.tokens.push_back(draw(1000));
          work.push_back({.sequence = &sequence, .num_tokens = 1});
        }
        const auto rows = engine.step(work);
        EXPECT_TRUE(rows.ok()) << rows.status();
        if (!rows.ok()) return all;
        all.insert(all.end(), rows->begin(), rows->end());
      }
    }
    for (Sequence& sequence : sequences) engine.close(sequence);
    return all;
  }

  static double relative_error(const std::vector<float>& actual, const std::vector<float>& expected) {
    double error = 0.0, size = 0.0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double difference = actual[i] - expected[i];
      error += difference * difference, size += double{expected[i]} * expected[i];
    }
    return std::sqrt(error / size);
  }

  std::string dir_;
};

INSTANTIATE_TEST_SUITE_P(Models, LayerStackOnGpu, testing::ValuesIn(stack_models()),
                         [](const auto& of) { return of.param.name; });

TEST_P(LayerStackOnGpu, AgreesWithLayersOneByOne) {
  auto plain = make(false, false), stacked = make(true, false);
  ASSERT_TRUE(plain != nullptr && stacked != nullptr);
  EXPECT_EQ(plain->runner().max_stacked_decodes(), 0);
  ASSERT_GE(stacked->runner().max_stacked_decodes(), std::min(GetParam().max_requests, 4)) << "nothing would be tested";
  const std::vector<float> expected = decode(*plain), actual = decode(*stacked);
  ASSERT_EQ(actual.size(), expected.size());
  const double relative = relative_error(actual, expected);
  RecordProperty("relative_error", std::to_string(relative));
  const bool is_half = GetParam().config["torch_dtype"] == "float16";
  EXPECT_LE(relative, is_half ? 2e-3 : 1.5e-2);
}

// On the CPU, which has nothing in common with the GPU but the weights. Small models: it computes them in float32.
TEST_P(LayerStackOnGpu, AgreesWithTheCpu) {
  if (GetParam().config["hidden_size"] > 512) GTEST_SKIP() << "takes long on the CPU";
  ModelRunnerOptions on_cpu = engine_options(false, false);
  on_cpu.device = Device();
  auto cpu = Engine::create(on_cpu);
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  auto stacked = make(true, true);
  ASSERT_TRUE(stacked != nullptr);
  const std::vector<float> expected = decode(**cpu), actual = decode(*stacked);
  ASSERT_EQ(actual.size(), expected.size());
  const double relative = relative_error(actual, expected);
  RecordProperty("relative_error", std::to_string(relative));
  EXPECT_LE(relative, 3e-2);
}

// The exchange between thread blocks is in the same state after any number of launches of any size.
TEST_P(LayerStackOnGpu, GivesTheSameBitsWhenReplayedAndAgain) {
  auto eager = make(true, false), replayed = make(true, true);
  ASSERT_TRUE(eager != nullptr && replayed != nullptr);
  const std::vector<float> expected = decode(*eager);
  EXPECT_TRUE(decode(*eager) == expected);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(decode(*replayed) == expected) << "replayed, round " << i;
}

// What the kernel does not take goes layer by layer, and says so.
TEST_P(LayerStackOnGpu, IsLeftOutWhereItDoesNotFit) {
  const auto rows_with = [&](auto change) {
    ModelRunnerOptions options = engine_options(true, false);
    change(options);
    auto engine = Engine::create(options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? (*engine)->runner().max_stacked_decodes() : -1;
  };
  EXPECT_EQ(rows_with([](ModelRunnerOptions& options) { options.page_size = 8; }), 0) << "small pages";
  EXPECT_EQ(rows_with([](ModelRunnerOptions& options) { options.deterministic = true; }), 0);
  EXPECT_EQ(rows_with([](ModelRunnerOptions& options) { options.attention = AttentionKind::kReference; }), 0);
}

}  // namespace
}  // namespace onepass
