#include "engine/engine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

namespace onepass {
namespace {

// A model of random weights, made from a config alone.
class EngineTest : public testing::Test {
 protected:
  EngineTest() : dir_(testing::TempDir() + "onepass_engine_test_" + std::to_string(::getpid())) {
    std::filesystem::create_directories(dir_);
    std::ofstream(dir_ + "/config.json") << R"({
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 192,
      "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 300,
      "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
      "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32"})";
  }
  ~EngineTest() override { std::filesystem::remove_all(dir_); }

  std::unique_ptr<Engine> make(ModelRunnerOptions options = {}) {
    options.model_dir = dir_;
    options.dummy_weights = true;
    options.num_threads = 2;
    auto engine = Engine::create(options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }

  std::vector<int32_t> random_tokens(int count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random_() % 300);
    return tokens;
  }

  // Logits after `tokens` in a fresh sequence.
  static std::vector<float> logits_of(Engine& engine, const std::vector<int32_t>& tokens) {
    Sequence sequence = *engine.open();
    sequence.tokens = tokens;
    const std::span<float> logits = *engine.prefill(sequence);
    std::vector<float> copy(logits.begin(), logits.end());
    engine.close(sequence);
    return copy;
  }

  static void expect_near(std::span<const float> a, std::span<const float> b) {
    ASSERT_EQ(a.size(), b.size());
    float largest = 0.0f;
    for (float value : b) largest = std::max(largest, std::fabs(value));
    ASSERT_GT(largest, 0.0f);
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-4f * largest) << "at " << i;
  }

  const std::string dir_;
  std::mt19937 random_{11};
};

TEST_F(EngineTest, ChunksPagesAndTokenByTokenAgree) {
  const std::vector<int32_t> tokens = random_tokens(150);
  auto whole = make();
  const std::vector<float> expected = logits_of(*whole, tokens);
  for (int page_size : {1, 7, 64, 256}) {
    for (int chunk : {1, 13, 64}) {
      auto engine = make({.page_size = page_size, .max_tokens_per_step = chunk});
      expect_near(logits_of(*engine, tokens), expected);
    }
  }
  auto reference = make({.attention = AttentionKind::kReference});
  expect_near(logits_of(*reference, tokens), expected);
}

TEST_F(EngineTest, RewindAndExtendEqualsAFreshSequence) {
  auto engine = make({.page_size = 16, .max_requests = 2});
  std::vector<int32_t> first = random_tokens(100);
  Sequence sequence = *engine->open();
  sequence.tokens = first;
  ASSERT_TRUE(engine->prefill(sequence).ok());
  for (int kept : {99, 64, 37, 1, 0}) {
    engine->rewind(sequence, kept);
    EXPECT_EQ(engine->pages_in_use(), (kept + 15) / 16);
    sequence.tokens.resize(kept);
    const std::vector<int32_t> suffix = random_tokens(40);
    sequence.tokens.insert(sequence.tokens.end(), suffix.begin(), suffix.end());
    const std::span<float> logits = *engine->prefill(sequence);
    const std::vector<float> copy(logits.begin(), logits.end());
    expect_near(copy, logits_of(*engine, sequence.tokens));
    EXPECT_TRUE(engine->check().empty());
  }
}

TEST_F(EngineTest, ABatchGivesEachSequenceWhatItGetsAlone) {
  auto engine = make({.page_size = 8, .max_requests = 6});
  std::vector<Sequence> sequences;
  std::vector<Engine::Work> work;
  for (int i = 0; i < 5; ++i) {
    sequences.push_back(*engine->open());
    sequences.back().tokens = random_tokens(1 + 17 * i);
  }
  // Ragged prefill in one step, then decoding.
  work.reserve(sequences.size());
  for (Sequence& sequence : sequences) work.push_back({&sequence, sequence.num_pending()});
  for (int step = 0; step < 4; ++step) {
    const std::span<float> logits = *engine->step(work);
    const std::vector<float> all(logits.begin(), logits.end());
    work.clear();
    for (size_t i = 0; i < sequences.size(); ++i) {
      expect_near(std::span(all).subspan(i * 300, 300), logits_of(*engine, sequences[i].tokens));
      sequences[i].tokens.push_back(static_cast<int32_t>(random_() % 300));
      work.push_back({&sequences[i], 1});
    }
  }
}

TEST_F(EngineTest, RunningOutOfPagesIsAnErrorThatChangesNothing) {
  auto engine = make({.page_size = 16, .max_requests = 3, .kv_tokens = 64});
  Sequence a = *engine->open(), b = *engine->open();
  a.tokens = random_tokens(40);  // three of the four pages
  b.tokens = random_tokens(20);  // two
  ASSERT_TRUE(engine->prefill(a).ok());
  a.tokens.push_back(5);
  const std::vector<Engine::Work> work = {{&a, 1}, {&b, 20}};
  const auto logits = engine->step(work);
  EXPECT_EQ(logits.status().message(), "out of KV cache: all 4 pages of 16 tokens are in use");
  EXPECT_EQ(engine->pages_in_use(), 3);
  EXPECT_EQ(a.num_computed, 40);
  EXPECT_TRUE(engine->check().empty());
  engine->close(a);
  EXPECT_TRUE(engine->prefill(b).ok());
  engine->close(b);
  EXPECT_EQ(engine->pages_in_use(), 0);
}

TEST_F(EngineTest, RefusesWhatDoesNotFit) {
  auto engine = make({.context_length = 32});
  EXPECT_FALSE(engine->check_tokens({}).ok());
  EXPECT_EQ(engine->check_tokens(random_tokens(32)).message(),
            "prompt: 32 tokens, but the context of 32 holds at most 31 and one new one");
  EXPECT_TRUE(engine->check_tokens(random_tokens(31)).ok());
  const std::vector<int32_t> bad = {1, 300}, negative = {-1};
  EXPECT_EQ(engine->check_tokens(bad).message(), "token id: expected 0 to 299, found 300");
  EXPECT_FALSE(engine->check_tokens(negative).ok());
  Sequence only = *engine->open();
  EXPECT_FALSE(engine->open().ok());
  only.tokens = random_tokens(33);
  EXPECT_FALSE(engine->prefill(only).ok());
  ModelRunnerOptions options{.model_dir = dir_, .dummy_weights = true, .context_length = 257};
  EXPECT_EQ(Engine::create(options).status().message(), "context length: the model was made for 256 tokens, found 257");
}

// Random opens, steps, rewinds and closes: the books stay right, and what is computed stays what a fresh sequence gets.
TEST_F(EngineTest, RandomOperationsKeepTheBooksAndTheNumbersRight) {
  auto engine = make({.page_size = 4, .max_requests = 4, .kv_tokens = 120, .max_tokens_per_step = 32});
  auto fresh = make();
  std::map<int, Sequence> open;
  int compared = 0;
  for (int step = 0; step < 400; ++step) {
    const uint32_t choice = random_() % 10;
    if (choice < 2) {
      auto sequence = engine->open();
      EXPECT_EQ(sequence.ok(), open.size() < 4);
      if (sequence.ok()) {
        const int slot = sequence->slot;
        open[slot] = *std::move(sequence);
      }
    } else if (!open.empty()) {
      Sequence& sequence = std::next(open.begin(), random_() % open.size())->second;
      if (choice < 7) {
        const std::vector<int32_t> more = random_tokens(1 + static_cast<int>(random_() % 30));
        if (sequence.tokens.size() + more.size() > 200) continue;
        sequence.tokens.insert(sequence.tokens.end(), more.begin(), more.end());
        const auto logits = engine->prefill(sequence);
        if (logits.ok() && random_() % 4 == 0) {
          const std::vector<float> copy(logits->begin(), logits->end());
          expect_near(copy, logits_of(*fresh, sequence.tokens));
          ++compared;
        }
        if (!logits.ok()) sequence.tokens.resize(sequence.num_computed);
      } else if (choice < 9) {
        engine->rewind(sequence, static_cast<int>(random_() % (sequence.num_computed + 1)));
        sequence.tokens.resize(sequence.num_computed);
      } else {
        const int slot = sequence.slot;
        engine->close(sequence);
        open.erase(slot);
      }
    }
    const auto violations = engine->check();
    ASSERT_TRUE(violations.empty()) << "step " << step << ": " << violations[0].message;
    int pages = 0;
    for (const auto& [slot, sequence] : open) pages += (sequence.num_computed + 3) / 4;
    ASSERT_EQ(engine->pages_in_use(), pages);
  }
  EXPECT_GT(compared, 10);
}

}  // namespace
}  // namespace onepass
