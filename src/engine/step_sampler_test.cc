// Tokens chosen by the engine, against a Sampler of the test's own on the logits that the same engine gives.
#include "engine/step_sampler.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "engine/engine.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

constexpr int kVocab = 1000;

class StepSamplerTest : public testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    if (GetParam() == DeviceKind::kCuda) {
      const StatusOr<GpuInfo> gpu = query_gpu(0);
      if (!gpu.ok()) GTEST_SKIP() << gpu.status();
      if (!gpu->usable) GTEST_SKIP() << "no code for " << gpu->name;
    }
    dir_ = testing::TempDir() + "onepass_step_sampler_test_" + std::to_string(::getpid());
    std::filesystem::create_directories(dir_);
    std::ofstream(dir_ + "/config.json") << R"({
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 192,
      "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1000,
      "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
      "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16"})";
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::unique_ptr<Engine> make(int max_requests) {
    auto engine = Engine::create({.model_dir = dir_,
                                  .device = {.kind = GetParam()},
                                  .dummy_weights = true,
                                  .page_size = 16,
                                  .num_threads = 2,
                                  .max_requests = max_requests,
                                  .max_tokens_per_step = 64});
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }

  int draw(int n) { return static_cast<int>(random_() % n); }
  std::vector<int32_t> random_tokens(int count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = draw(kVocab);
    return tokens;
  }
  // One of the ways in which requests want their tokens.
  SamplingParams random_params() {
    SamplingParams params{.temperature = draw(3) == 0 ? 0.0f : 0.5f + 0.1f * static_cast<float>(draw(10)),
                          .seed = random_()};
    if (draw(2) == 0) params.top_k = 1 + draw(60);
    if (draw(2) == 0) params.top_p = 0.5f + 0.05f * static_cast<float>(draw(10));
    if (draw(3) == 0) params.min_p = 0.01f;
    if (draw(3) == 0) params.repetition_penalty = 1.3f;
    if (draw(3) == 0) params.presence_penalty = 0.5f;
    if (draw(3) == 0) params.frequency_penalty = 0.25f;
    if (draw(3) == 0) params.logit_bias = {{draw(kVocab), 3.0f}};
    if (draw(3) == 0) params.min_new_tokens = 4;
    if (draw(2) == 0) params.logprobs = draw(6);
    return params;
  }

  std::string dir_;
  std::mt19937_64 random_{5};
};

INSTANTIATE_TEST_SUITE_P(Devices, StepSamplerTest, testing::Values(DeviceKind::kCpu, DeviceKind::kCuda),
                         [](const auto& device) { return device.param == DeviceKind::kCpu ? "Cpu" : "Cuda"; });

// Requests with all sorts of parameters in one batch. Each step is computed twice: for its logits, which the test's
// samplers take, and for its tokens.
TEST_P(StepSamplerTest, ChoosesWhatTheSamplerChooses) {
  constexpr int kRequests = 7, kSteps = 12;
  auto engine = make(kRequests);
  int compared = 0, different = 0;
  for (int round = 0; round < 4; ++round) {
    std::vector<Sequence> sequences;
    std::vector<Sampler> mine, theirs;
    std::vector<Sampler*> samplers;
    sequences.reserve(kRequests);
    mine.reserve(kRequests);
    theirs.reserve(kRequests);
    for (int i = 0; i < kRequests; ++i) {
      sequences.push_back(*engine->open());
      sequences[i].tokens = random_tokens(1 + draw(40));
      const SamplingParams params = random_params();
      mine.emplace_back(params, sequences[i].tokens, std::vector<int32_t>{1, 2});
      theirs.emplace_back(params, sequences[i].tokens, std::vector<int32_t>{1, 2});
      ASSERT_TRUE(engine->prefill(sequences[i]).ok());
      engine->rewind(sequences[i], sequences[i].num_computed - 1);
    }
    samplers.reserve(kRequests);
    for (Sampler& sampler : theirs) samplers.push_back(&sampler);
    bool parted = false;  // a draw can fall on the boundary of two tokens; what follows is then another text
    for (int step = 0; step < kSteps && !parted; ++step) {
      std::vector<Engine::Work> work;
      work.reserve(kRequests);
      for (Sequence& sequence : sequences) work.push_back({.sequence = &sequence, .num_tokens = 1});
      const auto logits = engine->step(work);
      ASSERT_TRUE(logits.ok()) << logits.status();
      std::vector<SampledToken> expected;
      for (int i = 0; i < kRequests; ++i) {
        std::vector<float> row(logits->begin() + i * kVocab, logits->begin() + (i + 1) * kVocab);
        expected.push_back(*mine[i].sample(row));
        engine->rewind(sequences[i], sequences[i].num_computed - 1);
      }
      ASSERT_TRUE(engine->launch(work, samplers).ok());
      const auto found = engine->collect();
      ASSERT_TRUE(found.ok()) << found.status();
      for (int i = 0; i < kRequests; ++i) {
        ++compared;
        EXPECT_EQ(sequences[i].tokens.back(), (*found)[i].token);
        if ((*found)[i].token != expected[i].token) {
          ++different;
          parted = true;
          continue;
        }
        const bool wants_logprobs = mine[i].params().logprobs >= 0;
        if (wants_logprobs) {
          EXPECT_NEAR((*found)[i].logprob, expected[i].logprob, 1e-3f);
        }
        ASSERT_EQ((*found)[i].top.size(), expected[i].top.size());
        for (size_t j = 0; j < expected[i].top.size(); ++j) {
          EXPECT_NEAR((*found)[i].top[j].logprob, expected[i].top[j].logprob, 1e-3f);
        }
      }
    }
    for (Sequence& sequence : sequences) engine->close(sequence);
  }
  // The CPU's are the same code.
  EXPECT_LE(100 * different, GetParam() == DeviceKind::kCpu ? 0 : compared) << "of " << compared;
  EXPECT_GE(compared, 2 * kSteps * kRequests);
}

// A step is launched before the tokens that it computes are known.
TEST_P(StepSamplerTest, StepsInFlightGiveTheTokensOfStepsInTurn) {
  constexpr int kRequests = 5, kSteps = 20;
  auto engine = make(kRequests);
  std::vector<std::vector<int32_t>> texts[2];
  const std::vector<int32_t> prompt = random_tokens(30);
  for (const bool overlapped : {false, true}) {
    std::mt19937_64 random(7);
    std::swap(random, random_);
    std::vector<Sequence> sequences;
    std::vector<Sampler> own;
    std::vector<Sampler*> samplers;
    std::vector<Engine::Work> work;
    sequences.reserve(kRequests);
    own.reserve(kRequests);
    for (int i = 0; i < kRequests; ++i) {
      sequences.push_back(*engine->open());
      sequences[i].tokens.assign(prompt.begin(), prompt.begin() + 4 * (i + 1));
      own.emplace_back(random_params(), sequences[i].tokens, std::vector<int32_t>{1});
      samplers.push_back(&own[i]);
      work.push_back({.sequence = &sequences[i], .num_tokens = sequences[i].num_pending()});
    }
    std::swap(random, random_);
    int launched = 0;
    for (int step = 0; step < kSteps; ++step) {
      ASSERT_TRUE(engine->launch(work, samplers).ok());
      for (Engine::Work& one : work) one.num_tokens = 1;
      ++launched;
      if (overlapped && launched == 1) continue;
      ASSERT_TRUE(engine->collect().ok());
      --launched;
    }
    for (; launched > 0; --launched) ASSERT_TRUE(engine->collect().ok());
    for (Sequence& sequence : sequences) {
      texts[overlapped].push_back(sequence.tokens);
      engine->close(sequence);
    }
  }
  EXPECT_EQ(texts[0], texts[1]);
  EXPECT_TRUE(engine->check().empty());
}

}  // namespace
}  // namespace onepass
