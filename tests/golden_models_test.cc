// Tiny random models of every architecture and config feature, made by the transformers library
// (tools/make_golden_models.py), against the logits and greedy continuations that it gave.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/engine.h"
#include "models/safetensors.h"

namespace onepass {
namespace {

namespace fs = std::filesystem;

const fs::path kFolder = fs::path(ONEPASS_SOURCE_DIR) / "tests/golden/models";

std::vector<std::string> golden_models() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kFolder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<float> floats(const SafetensorsFile& file, const std::string& name) {
  const TensorView& view = file.tensors().at(name);
  std::vector<float> values(view.num_elements());
  convert_to_float(view.data, view.dtype, view.num_elements(), values.data());
  return values;
}

float largest(std::span<const float> values) {
  float result = 0.0f;
  for (float value : values) result = std::max(result, std::fabs(value));
  return result;
}

float largest_difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  float result = 0.0f;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float difference = std::fabs(a[i] - b[i]);
    result = std::isnan(difference) ? INFINITY : std::max(result, difference);
  }
  return result;
}

int argmax(std::span<const float> logits) {
  return static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// The distance between the largest logit and the second largest.
float margin(std::span<const float> logits) {
  std::vector<float> sorted(logits.begin(), logits.end());
  std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<float>());
  return *std::max_element(sorted.begin(), sorted.begin() + 1) - sorted[1];
}

double negative_log_likelihood(std::span<const float> logits, int token) {
  double sum = 0.0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit));
  return std::log(sum) - logits[token];
}

class GoldenModel : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    dir_ = (kFolder / GetParam()).string();
    golden_ = nlohmann::json::parse(std::ifstream(dir_ + "/golden.json"));
    input_ids_ = golden_["input_ids"].get<std::vector<int32_t>>();
    greedy_ids_ = golden_["greedy_ids"].get<std::vector<int32_t>>();
    auto file = SafetensorsFile::open(dir_ + "/golden.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    expected_ = floats(*file, "logits");
    if (file->tensors().contains("logits_native")) native_ = floats(*file, "logits_native");
    vocab_size_ = static_cast<int>(expected_.size() / input_ids_.size());
  }

  // Float32 weights are compared in float32 throughout, K and V in the cache too.
  ModelRunnerOptions options() const {
    ModelRunnerOptions options{
        .model_dir = dir_, .num_threads = 2, .max_tokens_per_step = 4096, .max_outputs_per_step = 4096};
    return options;
  }

  std::unique_ptr<Engine> make(const ModelRunnerOptions& options) const {
    auto engine = Engine::create(options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }

  // Logits of every position, computed in pieces of the given sizes (the last one as often as needed).
  std::vector<float> logits(Engine& engine, const std::vector<int>& pieces) const {
    Sequence sequence = *engine.open();
    sequence.tokens = input_ids_;
    std::vector<float> all;
    for (size_t i = 0; sequence.num_pending() > 0; ++i) {
      const int count = std::min(sequence.num_pending(), pieces[std::min(i, pieces.size() - 1)]);
      const Engine::Work work{.sequence = &sequence, .num_tokens = count, .num_outputs = count};
      const auto piece = engine.step({&work, 1});
      EXPECT_TRUE(piece.ok()) << piece.status();
      all.insert(all.end(), piece->begin(), piece->end());
    }
    engine.close(sequence);
    return all;
  }

  bool has_float32_weights() const { return golden_["weights_dtype"] == "float32"; }

  std::string dir_;
  nlohmann::json golden_;
  std::vector<int32_t> input_ids_, greedy_ids_;
  std::vector<float> expected_;  // [input_ids, vocab_size], computed in float32
  std::vector<float> native_;    // the same in the weights' own dtype; empty for float32
  int vocab_size_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Models, GoldenModel, testing::ValuesIn(golden_models()), [](const auto& param_info) {
  std::string name = param_info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST_P(GoldenModel, GivesTheLogitsOfTransformers) {
  auto engine = make(options());
  const std::vector<float> actual = logits(*engine, {1 << 20});
  ASSERT_EQ(actual.size(), expected_.size());
  const float scale = largest(expected_), error = largest_difference(actual, expected_);
  if (has_float32_weights()) {
    EXPECT_LE(error, 1e-4f * scale);
    return;
  }
  // What transformers' own low-precision run differs by from its float32 run is the noise; this engine rounds less
  // often.
  ASSERT_FALSE(native_.empty());
  const float noise = largest_difference(native_, expected_);
  EXPECT_LE(error, noise);
  double actual_nll = 0.0, expected_nll = 0.0, native_square = 0.0;
  size_t compared = 0;
  for (size_t i = 0; i < input_ids_.size(); ++i) {
    const std::span<const float> row = std::span(expected_).subspan(i * vocab_size_, vocab_size_);
    const std::span<const float> actual_row = std::span(actual).subspan(i * vocab_size_, vocab_size_);
    if (margin(row) > 2 * noise) {
      ++compared;
      EXPECT_EQ(argmax(actual_row), argmax(row)) << "at position " << i;
    }
    if (i + 1 == input_ids_.size()) break;
    actual_nll += negative_log_likelihood(actual_row, input_ids_[i + 1]);
    const double expected_token = negative_log_likelihood(row, input_ids_[i + 1]);
    const double native_token =
        negative_log_likelihood(std::span(native_).subspan(i * vocab_size_, vocab_size_), input_ids_[i + 1]);
    expected_nll += expected_token;
    native_square += (native_token - expected_token) * (native_token - expected_token);
  }
  EXPECT_GE(5 * compared, input_ids_.size()) << "the golden model says little";
  // 0.5%, or what rounding does to the mean over so few random tokens: the reference's own run in low precision says
  // how much it moves one token (the bundled model's perplexity is held to 0.5% on thousands of tokens of real text).
  const double tokens = static_cast<double>(input_ids_.size() - 1);
  const double standard_error = std::sqrt(native_square) / tokens;
  EXPECT_NEAR(std::exp((actual_nll - expected_nll) / tokens), 1.0, std::max(0.005, 2 * standard_error));
}

TEST_P(GoldenModel, ContinuesGreedilyLikeTransformers) {
  auto engine = make(options());
  Sequence sequence = *engine->open();
  sequence.tokens = input_ids_;
  const float noise = native_.empty() ? 1e-4f * largest(expected_) : largest_difference(native_, expected_);
  const std::vector<float> margins = golden_["greedy_margins"];
  size_t compared = 0;
  for (size_t i = 0; i < greedy_ids_.size(); ++i) {
    const auto row = engine->prefill(sequence);
    ASSERT_TRUE(row.ok()) << row.status();
    if (margins[i] > 2 * noise) {
      ++compared;
      ASSERT_EQ(argmax(*row), greedy_ids_[i]) << "token " << i << " of the continuation";
    }
    sequence.tokens.push_back(greedy_ids_[i]);  // stays on the reference's text where the choice is within the noise
  }
  EXPECT_GE(5 * compared, greedy_ids_.size()) << "the golden model says little";
}

TEST_P(GoldenModel, AgreesWithItselfHoweverItIsComputed) {
  auto whole = make(options());
  const std::vector<float> expected = logits(*whole, {1 << 20});
  // In low precision two ways round differently, by about what the reference's own two ways differ.
  const float bound = has_float32_weights() ? 2e-5f * largest(expected) : 2.0f * largest_difference(native_, expected_);
  std::mt19937 random(1);
  const auto draw = [&](int n) { return 1 + static_cast<int>(random() % n); };
  EXPECT_LE(largest_difference(logits(*whole, {1}), expected), bound) << "token by token";
  EXPECT_LE(largest_difference(logits(*whole, {draw(20), draw(20), draw(20)}), expected), bound) << "in chunks";
  for (int page_size : {1, 2, 16, 64, 256}) {
    ModelRunnerOptions paged = options();
    paged.page_size = page_size;
    auto engine = make(paged);
    EXPECT_LE(largest_difference(logits(*engine, {draw(30), draw(30), 1}), expected), bound)
        << "pages of " << page_size;
    EXPECT_TRUE(engine->check().empty());
  }
  for (CpuIsa isa : supported_cpu_isas()) {
    ModelRunnerOptions other = options();
    other.isa = isa;
    EXPECT_LE(largest_difference(logits(*make(other), {1 << 20}), expected), bound) << to_string(isa);
  }
  ModelRunnerOptions reference = options();
  reference.attention = AttentionKind::kReference;
  EXPECT_LE(largest_difference(logits(*make(reference), {1 << 20}), expected), bound) << "reference attention";
}

// The same bits in chunks, with any page size and number of threads, and beside another sequence.
TEST_P(GoldenModel, IsTheSameBitForBitWhenDeterministic) {
  std::mt19937 random(2);
  const auto draw = [&](int n) { return 1 + static_cast<int>(random() % n); };
  ModelRunnerOptions exact = options();
  exact.deterministic = true;
  exact.max_requests = 2;
  const std::vector<float> expected = logits(*make(exact), {1 << 20});
  EXPECT_LE(largest_difference(expected, expected_),
            has_float32_weights() ? 1e-4f * largest(expected_) : largest_difference(native_, expected_));
  for (int page_size : {1, 16, 256}) {
    exact.page_size = page_size;
    exact.num_threads = draw(3);
    auto engine = make(exact);
    EXPECT_TRUE(logits(*engine, {draw(30), draw(30), 1}) == expected) << "pages of " << page_size;
    Sequence first = *engine->open(), second = *engine->open();
    first.tokens = second.tokens = input_ids_;
    const int count = static_cast<int>(input_ids_.size());
    second.tokens.resize(draw(count));
    const Engine::Work work[] = {{&second, second.num_pending(), 1}, {&first, count, count}};
    const auto both = engine->step(work);
    ASSERT_TRUE(both.ok()) << both.status();
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), both->begin() + vocab_size_)) << "in a batch";
  }
}

}  // namespace
}  // namespace onepass
