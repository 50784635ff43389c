// The slow twin of kernels/cuda/sample.h: sorts everything, in double. For tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "kernels/cuda/sample.h"
#include "kernels/philox.h"

namespace onepass {

// One row and what belongs to it.
struct SampleCase {
  SampleRow row;
  std::vector<float> logits;
  std::vector<LogitAdjustment> adjustments;
  int32_t last_token = 0;  // what tokens[slot] holds before
};

class SampleTwin {
 public:
  explicit SampleTwin(const SampleCase& c) : row_(c.row), raw_(c.logits), logits_(c.logits) {
    std::vector<LogitAdjustment> all = c.adjustments;
    if (row_.counts_last_token) {
      auto last = std::find_if(all.begin(), all.end(), [&](const auto& a) { return a.token == c.last_token; });
      if (last == all.end()) last = all.insert(all.end(), {.token = c.last_token});
      ++last->count;
      last->is_repeated = 1;
    }
    for (const LogitAdjustment& a : all) {
      float& logit = logits_[a.token];
      logit += a.bias;
      if (a.is_repeated && row_.repetition_penalty != 1.0f) {
        logit = logit > 0 ? logit / row_.repetition_penalty : logit * row_.repetition_penalty;
      }
      if (a.count > 0) logit -= row_.presence_penalty + row_.frequency_penalty * static_cast<float>(a.count);
      if (a.is_banned) logit = -kInfinity;
    }
    best_ = argmax(logits_);
    if (row_.num_logprobs >= 0 && argmax(raw_) >= 0) normalizer_ = log_sum_exp(raw_, raw_[argmax(raw_)]);
  }

  // -1: there is none to choose.
  int32_t token() const {
    if (argmax(raw_) < 0 || best_ < 0 || std::isinf(logits_[best_])) return -1;
    if (row_.temperature == 0.0f) return best_;
    return draw(row_.top_p, row_.min_p, uniform());
  }

  // Whether `token` is right, or would be if the draw or a bound were a hair's breadth elsewhere.
  bool accepts(int32_t token) const {
    const int32_t expected = this->token();
    if (token == expected) return true;
    if (token < 0 || expected < 0 || row_.temperature == 0.0f) return false;
    for (const double top_p : {1.0, 1 - 2e-6, 1 + 2e-6}) {
      for (const double min_p : {1.0, 1 - 2e-6, 1 + 2e-6}) {
        for (const double shift : {0.0, -1e-5, 1e-5}) {
          const double u = std::clamp(uniform() + shift, 0.0, 1 - 1e-15);
          const int32_t drawn = draw(std::min(1.0, row_.top_p * top_p), row_.min_p * min_p, u);
          if (token == drawn || is_hardly_different(token, drawn)) return true;
        }
      }
    }
    return false;
  }

  // Of the logits as they came.
  double logprob(int32_t token) const {
    return std::isnan(raw_[token]) ? -double{kInfinity} : raw_[token] - normalizer_;
  }
  std::vector<int32_t> top() const {
    std::vector<int32_t> order(raw_.size());
    std::iota(order.begin(), order.end(), 0);
    const auto value = [&](int32_t i) { return std::isnan(raw_[i]) ? -kInfinity : raw_[i]; };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return value(a) > value(b); });
    order.resize(std::min<size_t>(order.size(), std::max(0, row_.num_logprobs)));
    return order;
  }

  // The probability of each token; REQUIRES a temperature.
  std::vector<double> distribution() const {
    std::vector<double> result(logits_.size(), 0.0);
    const Kept kept = keep(row_.top_p, row_.min_p);
    for (const int32_t i : kept.tokens) result[i] = weight(i) / kept.mass;
    return result;
  }

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();
  struct Kept {
    std::vector<int32_t> tokens;  // in the order of the draw
    double mass = 0;
  };

  static int32_t argmax(const std::vector<float>& logits) {
    int32_t best = -1;
    float largest = -kInfinity;
    for (size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] > largest) largest = logits[i], best = static_cast<int32_t>(i);
    }
    return best;
  }
  // Whose weights differ by less than the last digits of a float: they may stand the other way around.
  bool is_hardly_different(int32_t a, int32_t b) const {
    return logits_[a] != logits_[b] && std::abs(weight(a) - weight(b)) < 2e-7 * weight(b);
  }
  double uniform() const { return philox_uniform(row_.seed, row_.draw); }
  double weight(int32_t i) const { return std::exp(double{logits_[i] - logits_[best_]} / row_.temperature); }
  static double log_sum_exp(const std::vector<float>& logits, double largest) {
    double sum = 0;
    for (const float logit : logits) {
      if (logit > -kInfinity) sum += std::exp(logit - largest);
    }
    return largest + std::log(sum);
  }

  Kept keep(double top_p, double min_p) const {
    Kept kept;
    for (size_t i = 0; i < logits_.size(); ++i) {
      // As likely as a float on the host can say.
      if (logits_[i] > -kInfinity && weight(static_cast<int32_t>(i)) > 0x1p-150) {
        kept.tokens.push_back(static_cast<int32_t>(i));
      }
    }
    const bool cuts = row_.top_k > 0 && row_.top_k < static_cast<int>(kept.tokens.size());
    if (cuts || top_p < 1) {
      std::stable_sort(kept.tokens.begin(), kept.tokens.end(),
                       [&](int32_t a, int32_t b) { return logits_[a] > logits_[b]; });
    }
    if (cuts) kept.tokens.resize(row_.top_k);
    for (const int32_t i : kept.tokens) kept.mass += weight(i);
    if (top_p < 1) {
      double mass = 0;
      size_t count = 0;
      while (count < kept.tokens.size() && mass < top_p * kept.mass) mass += weight(kept.tokens[count++]);
      kept.tokens.resize(count);
      kept.mass = mass;
    }
    if (min_p > 0) {
      std::erase_if(kept.tokens, [&](int32_t i) { return i != best_ && weight(i) < min_p; });
      kept.mass = 0;
      for (const int32_t i : kept.tokens) kept.mass += weight(i);
    }
    return kept;
  }
  int32_t draw(double top_p, double min_p, double u) const {
    const Kept kept = keep(top_p, min_p);
    double target = u * kept.mass;
    for (const int32_t i : kept.tokens) {
      target -= weight(i);
      if (target < 0) return i;
    }
    return kept.tokens.back();
  }

  const SampleRow row_;
  const std::vector<float> raw_;
  std::vector<float> logits_;  // adjusted
  int32_t best_ = -1;
  double normalizer_ = 0;
};

}  // namespace onepass
