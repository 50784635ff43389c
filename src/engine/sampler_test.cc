#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "kernels/philox.h"

namespace onepass {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

SampledToken sample(const SamplingParams& params, std::vector<float> logits, std::vector<int32_t> prompt = {}) {
  Sampler sampler(params, prompt, {});
  return *sampler.sample(logits);
}

// The slow twin: the distribution that the parameters describe, by sorting everything.
std::vector<double> distribution(const SamplingParams& p, const std::vector<float>& logits) {
  const int n = static_cast<int>(logits.size());
  std::vector<double> weight(n);
  const float top = *std::max_element(logits.begin(), logits.end());
  for (int i = 0; i < n; ++i) weight[i] = std::exp((double(logits[i]) - top) / p.temperature);
  std::vector<int> order(n);
  for (int i = 0; i < n; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return weight[a] > weight[b]; });
  if (p.top_k > 0 && p.top_k < n) order.resize(p.top_k);
  double total = 0;
  for (int i : order) total += weight[i];
  double mass = 0;
  size_t kept = 0;
  while (kept < order.size() && mass < p.top_p * total) mass += weight[order[kept++]];
  if (p.top_p < 1) order.resize(kept);
  std::erase_if(order, [&](int i) { return weight[i] < p.min_p; });
  std::vector<double> result(n, 0.0);
  total = 0;
  for (int i : order) total += weight[i];
  for (int i : order) result[i] = weight[i] / total;
  return result;
}

TEST(Philox, MatchesThePublishedTestVectors) {
  // Random123's kat_vectors: philox4x32 10 rounds.
  EXPECT_TRUE(philox4x32({{0, 0, 0, 0}}, 0, 0) == (PhiloxWords{{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
  EXPECT_TRUE(philox4x32({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffff, 0xffffffff) ==
              (PhiloxWords{{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}));
}

TEST(Sampler, GreedyTakesTheLargestAndTheSmallestIdOfATie) {
  SamplingParams params{.temperature = 0};
  EXPECT_EQ(sample(params, {1, 3, 2, 3}).token, 1);
  EXPECT_EQ(sample(params, {-kInf, NAN, -5}).token, 2);
}

TEST(Sampler, LogitsWithoutANumberAreAnError) {
  Sampler sampler(SamplingParams{}, {}, {});
  std::vector<float> nan(4, NAN), inf(4, -kInf), infinite = {0, kInf};
  EXPECT_FALSE(sampler.sample(nan).ok());
  EXPECT_FALSE(sampler.sample(inf).ok());
  EXPECT_FALSE(sampler.sample(infinite).ok());
}

// 20,000 draws against the distribution of the slow twin: no impossible token, and frequencies within 5 sigma.
TEST(Sampler, FollowsTheDistributionOfEveryCombination) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  for (const SamplingParams& base : {SamplingParams{}, SamplingParams{.temperature = 0.5f}, SamplingParams{.top_k = 5},
                                     SamplingParams{.top_p = 0.7f}, SamplingParams{.min_p = 0.1f},
                                     SamplingParams{.temperature = 1.5f, .top_k = 40, .top_p = 0.9f, .min_p = 0.02f}}) {
    std::vector<float> logits(200);
    for (float& logit : logits) logit = normal(random);
    const std::vector<double> expected = distribution(base, logits);
    constexpr int kDraws = 20000;
    std::vector<int> counts(logits.size());
    SamplingParams params = base;
    params.seed = 99;
    Sampler sampler(params, {}, {});
    for (int i = 0; i < kDraws; ++i) {
      std::vector<float> copy = logits;
      ++counts[sampler.sample(copy)->token];
    }
    for (size_t i = 0; i < logits.size(); ++i) {
      if (expected[i] == 0) {
        EXPECT_EQ(counts[i], 0);
      } else {
        EXPECT_NEAR(counts[i], kDraws * expected[i], 5 * std::sqrt(kDraws * expected[i]) + 3);
      }
    }
  }
}

TEST(Sampler, DrawsDependOnTheSeedAlone) {
  std::vector<float> logits(1000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i));
  const auto draws = [&](uint64_t seed) {
    Sampler sampler({.seed = seed}, {}, {});
    std::vector<int32_t> tokens;
    for (int i = 0; i < 50; ++i) {
      std::vector<float> copy = logits;
      tokens.push_back(sampler.sample(copy)->token);
    }
    return tokens;
  };
  EXPECT_EQ(draws(1), draws(1));
  EXPECT_NE(draws(1), draws(2));
}

TEST(Sampler, PenaltiesChangeTheLogitsAsDefined) {
  // Repetition: positive logits are divided, negative ones multiplied; the prompt counts.
  SamplingParams params{.temperature = 0, .repetition_penalty = 2.0f};
  EXPECT_EQ(sample(params, {4, 2.5f, 0}, {0}).token, 1);
  EXPECT_EQ(sample(params, {-1, -1.5f, -3}, {0}).token, 1);
  // Presence and frequency: generated tokens only.
  Sampler presence({.temperature = 0, .presence_penalty = 1.0f}, std::vector<int32_t>{0}, {});
  std::vector<int32_t> tokens;
  for (int i = 0; i < 3; ++i) {
    std::vector<float> logits = {3, 2.5f, 2.25f};
    tokens.push_back(presence.sample(logits)->token);
  }
  EXPECT_EQ(tokens, (std::vector<int32_t>{0, 1, 2}));
  Sampler frequency({.temperature = 0, .frequency_penalty = 1.0f}, {}, {});
  tokens.clear();
  for (int i = 0; i < 4; ++i) {
    std::vector<float> logits = {3, 1.5f};
    tokens.push_back(frequency.sample(logits)->token);
  }
  EXPECT_EQ(tokens, (std::vector<int32_t>{0, 0, 1, 0}));  // 3, 2, then 1 < 1.5, then 1 > 0.5
  EXPECT_EQ(sample({.temperature = 0, .logit_bias = {{1, 10.0f}}}, {3, 0, 0}).token, 1);
}

TEST(Sampler, EndTokensWaitForTheMinimum) {
  Sampler sampler({.temperature = 0, .min_new_tokens = 2}, {}, {0});
  std::vector<int32_t> tokens;
  for (int i = 0; i < 3; ++i) {
    std::vector<float> logits = {3, 1};
    tokens.push_back(sampler.sample(logits)->token);
  }
  EXPECT_EQ(tokens, (std::vector<int32_t>{1, 1, 0}));
}

TEST(Sampler, LogprobsAreOfTheRawDistribution) {
  const std::vector<float> logits = {1, 2, 3, 0.5f};
  const SampledToken token = sample({.temperature = 0, .logit_bias = {{0, 100.0f}}, .logprobs = 2}, logits);
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit);
  EXPECT_EQ(token.token, 0);
  EXPECT_NEAR(token.logprob, 1 - std::log(sum), 1e-6);
  ASSERT_EQ(token.top.size(), 2u);
  EXPECT_EQ(token.top[0].token, 2);
  EXPECT_NEAR(token.top[0].logprob, 3 - std::log(sum), 1e-6);
  EXPECT_EQ(token.top[1].token, 1);
}

TEST(SamplingParams, ValidationNamesTheField) {
  const auto message = [](const SamplingParams& params) { return std::string(validate(params, 100).message()); };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.temperature = -1}), "temperature: expected 0 or more, found -1");
  EXPECT_EQ(message({.temperature = NAN}), "temperature: expected 0 or more, found nan");
  EXPECT_EQ(message({.top_k = -1}), "top_k: expected 0 (off) or more, found -1");
  EXPECT_EQ(message({.top_p = 0}), "top_p: expected more than 0 and at most 1, found 0");
  EXPECT_EQ(message({.repetition_penalty = 0.01f, .logit_bias = {{0, -100}, {1, 100}}}), "");
  for (const float penalty : {0.0f, 1e-40f, -1.0f, 101.0f, kInf, NAN}) {
    EXPECT_EQ(message({.repetition_penalty = penalty}).find("repetition_penalty: expected 0.01 to 100, found "), 0u);
  }
  for (const float bias : {101.0f, -1e38f, kInf, NAN}) {
    EXPECT_EQ(message({.logit_bias = {{0, bias}}}).find("logit_bias: expected -100 to 100, found "), 0u) << bias;
  }
  EXPECT_EQ(message({.logit_bias = {{-1, 1.0f}}}), "logit_bias: token id: expected 0 or more, found -1");
  EXPECT_EQ(message({.logit_bias = {{100, 1.0f}}}), "logit_bias: token id: expected 0 to 99, found 100");
  EXPECT_EQ(message({.max_new_tokens = 0}), "max_new_tokens: expected at least 1, found 0");
  EXPECT_EQ(message({.stop = {""}}), "stop: expected strings that are not empty");
}

}  // namespace
}  // namespace onepass
