// The golden models on the CPU, against transformers.
#include <cmath>
#include <random>

#include "golden_model.h"

namespace onepass {
namespace {

INSTANTIATE_TEST_SUITE_P(Models, GoldenModel, testing::ValuesIn(golden_models()), golden_test_name);

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
