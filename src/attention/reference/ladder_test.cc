#include "attention/reference/ladder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace onepass::ladder {
namespace {

template <typename T>
Head<T> random_head(const Shape& shape, double score_deviation, uint64_t seed, Meter& meter) {
  Head<T> head(shape, T(1.0 / std::sqrt(static_cast<double>(shape.d))), meter);
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal;
  for (T& x : head.q.elements()) x = T(static_cast<float>(normal(rng) * score_deviation));
  for (T& x : head.k.elements()) x = T(normal(rng));
  for (T& x : head.v.elements()) x = T(normal(rng));
  return head;
}

// softmax(scale Q K^T) V as written, in long double, on whatever the head's arithmetic made of its inputs.
template <typename T>
std::vector<double> brute_force(Head<T>& head) {
  const auto [n, d] = std::pair(head.shape.n, head.shape.d);
  const std::span<T> q = head.q.elements();
  const std::span<T> k = head.k.elements();
  const std::span<T> v = head.v.elements();
  const long double scale = 1.0L / std::sqrt(static_cast<long double>(d));
  std::vector<double> out;
  for (int64_t i = 0; i < n; ++i) {
    std::vector<long double> row(d, 0.0L);
    long double sum = 0.0L;
    for (int64_t j = 0; j < (head.shape.causal ? i + 1 : n); ++j) {
      long double score = 0.0L;
      for (int64_t c = 0; c < d; ++c) {
        score += static_cast<long double>(static_cast<double>(q[i * d + c])) * static_cast<double>(k[j * d + c]);
      }
      const long double weight = std::exp(scale * score);
      sum += weight;
      for (int64_t c = 0; c < d; ++c) row[c] += weight * static_cast<double>(v[j * d + c]);
    }
    for (long double value : row) out.push_back(static_cast<double>(value / sum));
  }
  return out;
}

Shape random_shape(std::mt19937_64& rng) {
  return {.n = static_cast<int64_t>(1 + rng() % 150),
          .d = static_cast<int64_t>(1 + rng() % 40),
          .causal = rng() % 2 == 0,
          .row_tile = static_cast<int64_t>(1 + rng() % 50),
          .key_tile = static_cast<int64_t>(1 + rng() % 50)};
}

template <typename T>
double largest_error(Rung rung, const Shape& shape, double score_deviation, uint64_t seed) {
  Meter meter;
  Head<T> head = random_head<T>(shape, score_deviation, seed, meter);
  const std::vector<double> exact = brute_force(head);
  run(rung, head);
  double largest = 0.0;
  for (size_t at = 0; at < exact.size(); ++at) {
    const double error = std::abs(static_cast<double>(head.out.elements()[at]) - exact[at]);
    largest = error <= largest ? largest : error;  // keeps NaN
  }
  return largest;
}

class EachRung : public testing::TestWithParam<Rung> {};

INSTANTIATE_TEST_SUITE_P(Ladder, EachRung, testing::ValuesIn(kRungs), [](const auto& rung) {
  std::string name(to_string(rung.param));
  std::erase(name, ' ');
  return name;
});

TEST_P(EachRung, AgreesWithTheFormulaOnRandomShapesAndTiles) {
  std::mt19937_64 rng(1);
  for (int round = 0; round < 40; ++round) {
    const Shape shape = random_shape(rng);
    SCOPED_TRACE(testing::Message() << "n " << shape.n << " d " << shape.d << " causal " << shape.causal << " tiles "
                                    << shape.row_tile << " x " << shape.key_tile);
    EXPECT_LE(largest_error<double>(GetParam(), shape, 3.0, rng()), 1e-12);
    EXPECT_LE(largest_error<float>(GetParam(), shape, 3.0, rng()), 2e-5);
    // Scores of deviation 1 stay below 11, so that fp16's naive sums hold; each step errs by up to 2^-11 of a sum.
    EXPECT_LE(largest_error<Half>(GetParam(), shape, 1.0, rng()), 0.04);
  }
}

TEST_P(EachRung, CostsWhatTheClosedFormulaSays) {
  std::mt19937_64 rng(2);
  for (int round = 0; round < 40; ++round) {
    const Shape shape = random_shape(rng);
    SCOPED_TRACE(testing::Message() << "n " << shape.n << " d " << shape.d << " causal " << shape.causal << " tiles "
                                    << shape.row_tile << " x " << shape.key_tile);
    auto count = [&]<typename T>(T) {
      Meter meter;
      Head<T> head = random_head<T>(shape, 1.0, 1, meter);
      run(GetParam(), head);
      return meter;
    };
    EXPECT_EQ(count(double()), predicted_cost(GetParam(), shape, 8));
    EXPECT_EQ(count(float()), predicted_cost(GetParam(), shape, 4));
    EXPECT_EQ(count(Half()), predicted_cost(GetParam(), shape, 2));
  }
}

TEST(Ladder, OnlyNaiveOverflowsInHalfPrecision) {
  for (bool causal : {false, true}) {
    const Config config{.shape = {.n = 300, .d = 32, .causal = causal}, .dtype = DType::kF16, .score_deviation = 4.0};
    const Report report = run_ladder(config);
    EXPECT_GT(report.largest_score, 12.0);
    for (const RungReport& rung : report.rungs) {
      SCOPED_TRACE(to_string(rung.rung));
      if (rung.rung == Rung::kNaive) {
        EXPECT_GT(rung.nan_rows, 0);
        EXPECT_GT(rung.zero_rows, 0);
      } else {
        EXPECT_EQ(rung.nan_rows, 0);
        EXPECT_EQ(rung.zero_rows, 0);
        EXPECT_LT(rung.max_error, 0.05);
      }
    }
  }
}

TEST(Ladder, NaiveOverflowsAsSoonAsOneScorePassesEleven) {
  for (float score : {11.0f, 11.2f}) {
    Meter meter;
    Head<Half> head({.n = 1, .d = 1}, Half(1.0f), meter);
    head.q.elements()[0] = Half(score);
    head.k.elements()[0] = Half(1.0f);
    head.v.elements()[0] = Half(3.0f);
    for (Rung rung : kRungs) {
      run(rung, head);
      const float out = static_cast<float>(head.out.elements()[0]);
      if (rung == Rung::kNaive && score > 11.1f) {
        EXPECT_TRUE(std::isnan(out));
      } else {
        EXPECT_EQ(out, 3.0f) << to_string(rung) << " at " << score;
      }
    }
  }
}

TEST(Ladder, NaiveOverflowsInSinglePrecisionPastEightyEight) {
  const Report report = run_ladder({.shape = {.n = 64, .d = 16}, .dtype = DType::kF32, .score_deviation = 60.0});
  EXPECT_GT(report.largest_score, 100.0);
  EXPECT_GT(report.rungs[0].nan_rows, 0);
  for (size_t at = 1; at < report.rungs.size(); ++at) {
    EXPECT_EQ(report.rungs[at].nan_rows, 0);
    EXPECT_LT(report.rungs[at].max_error, 1e-3);
  }
}

TEST(Ladder, OnePassHoldsTheSameAtEveryLengthAndTheOthersTheSquare) {
  const Shape short_shape{.n = 1000, .d = 64};
  const Shape long_shape{.n = 10000, .d = 64};
  for (Rung rung : kRungs) {
    const int64_t before = predicted_cost(rung, short_shape, 2).bytes_held;
    const int64_t after = predicted_cost(rung, long_shape, 2).bytes_held;
    if (rung == Rung::kOnePass) {
      EXPECT_EQ(after, before);
    } else {
      EXPECT_GT(after, 90 * before);
    }
  }
}

TEST(Ladder, TheSameSeedGivesTheSameNumbers) {
  const Config config{.shape = {.n = 50, .d = 8}, .dtype = DType::kF16, .seed = 5};
  Config other = config;
  other.seed = 6;
  const Report report = run_ladder(config);
  EXPECT_EQ(report.largest_score, run_ladder(config).largest_score);
  EXPECT_NE(report.largest_score, run_ladder(other).largest_score);
}

}  // namespace
}  // namespace onepass::ladder
