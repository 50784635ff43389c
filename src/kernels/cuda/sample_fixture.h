// What the tests of kernels/cuda/sample.h share: batches of rows on a GPU, random ones, and the comparison with the
// twin.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_kernel_test.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/sample_twin.h"

namespace onepass {

class CudaSample : public CudaKernelTest {
 protected:
  static constexpr float kInf = std::numeric_limits<float>::infinity();

  struct Found {
    std::vector<SampledRow> results;
    std::vector<TopLogprob> tops;
    std::vector<int32_t> tokens;
  };
  // A batch in device memory. Row i has slot 2 * i + 1 and result n - 1 - i, unless it is nobody's.
  struct Batch {
    Batch(std::vector<SampleCase> these, int64_t padding) : cases(std::move(these)) {
      const auto n = static_cast<int>(cases.size());
      vocab_size = static_cast<int>(cases[0].logits.size());
      stride = vocab_size + padding;
      std::vector<float> logits(n * stride, 1e30f);  // what lies between rows would win
      std::vector<SampleRow> rows;
      std::vector<LogitAdjustment> adjustments(1);
      std::vector<size_t> first_adjustments;
      std::vector<int32_t> tokens(2 * n + 1, -77);
      for (int i = 0; i < n; ++i) {
        SampleCase& c = cases[i];
        std::copy(c.logits.begin(), c.logits.end(), logits.begin() + i * stride);
        if (c.row.slot >= 0) c.row.slot = 2 * i + 1;
        c.row.result = n - 1 - i;
        first_adjustments.insert(first_adjustments.end(), adjustments.size());
        c.row.num_adjustments = static_cast<int32_t>(c.adjustments.size());
        adjustments.insert(adjustments.end(), c.adjustments.begin(), c.adjustments.end());
        rows.insert(rows.end(), c.row);
        tokens[2 * i + 1] = c.last_token;
      }
      buffers[2] = upload(adjustments);
      for (int i = 0; i < n; ++i) rows[i].adjustments = buffers[2].as<LogitAdjustment>() + first_adjustments[i];
      buffers[0] = upload(logits), buffers[1] = upload(rows);
      buffers[3] = upload(tokens), buffers[4] = upload(std::vector<SampledRow>(n, SampledRow{-99, 0.5f}));
      buffers[5] = upload(std::vector<TopLogprob>(n * kMaxSampleTops, TopLogprob{-99, 0.5f}));
      num_tokens = tokens.size();
    }
    CudaSampleParams params() const {
      return {.logits = buffers[0].as<float>(),
              .row_stride = stride,
              .vocab_size = vocab_size,
              .num_rows = static_cast<int>(cases.size()),
              .rows = buffers[1].as<SampleRow>(),
              .tokens = buffers[3].as<int32_t>(),
              .results = buffers[4].as<SampledRow>(),
              .top_logprobs = buffers[5].as<TopLogprob>()};
    }
    Found found() const {
      Found f{std::vector<SampledRow>(cases.size()), std::vector<TopLogprob>(cases.size() * kMaxSampleTops),
              std::vector<int32_t>(num_tokens)};
      EXPECT_TRUE(buffers[4].download(std::as_writable_bytes(std::span(f.results))).ok());
      EXPECT_TRUE(buffers[5].download(std::as_writable_bytes(std::span(f.tops))).ok());
      EXPECT_TRUE(buffers[3].download(std::as_writable_bytes(std::span(f.tokens))).ok());
      return f;
    }
    std::vector<SampleCase> cases;
    int vocab_size = 0;
    int64_t stride = 0;
    size_t num_tokens = 0;
    CudaBuffer buffers[6];
  };

  Found run(const Batch& batch, const std::optional<SamplePlan>& plan) {
    const Status status =
        plan ? run_sample_cuda(batch.params(), *plan, stream_->get()) : run_sample_cuda(batch.params(), stream_->get());
    EXPECT_TRUE(status.ok()) << status;
    const Status done = stream_->synchronize();
    EXPECT_TRUE(done.ok()) << done;
    return batch.found();
  }
  static void expect_twin(const std::vector<SampleCase>& cases, const Found& found) {
    const int n = static_cast<int>(cases.size());
    for (int i = 0; i < n; ++i) {
      const SampleCase& c = cases[i];
      SCOPED_TRACE(testing::Message() << "row " << i << " of " << n << ", vocab " << c.logits.size() << ", T "
                                      << c.row.temperature << ", top_k " << c.row.top_k << ", top_p " << c.row.top_p
                                      << ", min_p " << c.row.min_p << ", logprobs " << c.row.num_logprobs
                                      << ", adjustments " << c.adjustments.size());
      const SampledRow result = found.results[n - 1 - i];
      EXPECT_EQ(found.tokens[2 * i], -77);
      if (c.row.slot < 0) {
        EXPECT_EQ(result.token, -99);
        EXPECT_EQ(found.tokens[2 * i + 1], c.last_token);
        continue;
      }
      const SampleTwin twin(c);
      EXPECT_TRUE(twin.accepts(result.token)) << "found " << result.token << ", expected " << twin.token();
      EXPECT_EQ(found.tokens[2 * i + 1], std::max(0, result.token));
      if (result.token < 0 || c.row.num_logprobs < 0) continue;
      const auto expect_logprob = [&](float logprob, int32_t token) {
        const double expected = twin.logprob(token);
        if (!std::isfinite(expected)) {
          EXPECT_EQ(logprob, expected);
        } else {
          EXPECT_NEAR(logprob, expected, 2e-5 + 1e-6 * std::abs(expected));
        }
      };
      expect_logprob(result.logprob, result.token);
      const std::vector<int32_t> top = twin.top();
      for (size_t j = 0; j < top.size(); ++j) {
        const TopLogprob entry = found.tops[(n - 1 - i) * kMaxSampleTops + j];
        ASSERT_EQ(entry.token, top[j]) << "top " << j;
        expect_logprob(entry.logprob, top[j]);
      }
      if (top.size() < kMaxSampleTops) {
        EXPECT_EQ(found.tops[(n - 1 - i) * kMaxSampleTops + top.size()].token, -99);
      }
    }
  }
  void check(const std::vector<SampleCase>& cases, const std::optional<SamplePlan>& plan = {}, int64_t padding = 0) {
    const Batch batch(cases, padding);
    expect_twin(batch.cases, run(batch, plan));
  }

  std::vector<float> normal(int count, float deviation) {
    std::normal_distribution<float> distribution(0.0f, deviation);
    std::vector<float> values(count);
    for (float& value : values) value = distribution(rng_);
    return values;
  }
  // As a model's: few tokens far above a broad rest.
  std::vector<float> peaked(int count) {
    std::vector<float> values = normal(count, 2.0f);
    for (int i = 0; i < 40; ++i) values[rng_() % count] += 8.0f + 0.2f * static_cast<float>(i);
    return values;
  }
  std::vector<float> random_logits(int count) {
    switch (rng_() % 6) {
      case 0:
        return normal(count, 1.0f);
      case 1:
        return normal(count, 0.01f);  // nearly all alike
      case 2: {
        std::vector<float> ties = normal(count, 2.0f);
        for (float& value : ties) value = std::round(value * 8) / 8;
        return ties;
      }
      case 3: {
        std::vector<float> holes = peaked(count);
        for (int i = 0; i < count / 3; ++i) holes[rng_() % count] = rng_() % 2 == 0 ? -kInf : std::nanf("");
        return holes;
      }
      default:
        return peaked(count);
    }
  }
  SampleCase random_case(int vocab_size) {
    SampleCase c{.logits = random_logits(vocab_size)};
    c.row.slot = rng_() % 16 == 0 ? -1 : 0;
    c.row.temperature = one_of({0.0f, 0.2f, 0.7f, 1.0f, 1.6f});
    c.row.top_k = one_of({0, 0, 1, 5, 50, 900, vocab_size / 2, vocab_size, vocab_size + 1});
    c.row.top_p = one_of({1.0f, 1.0f, 0.95f, 0.5f, 0.999f});
    c.row.min_p = one_of({0.0f, 0.0f, 0.05f, 1e-4f});
    c.row.num_logprobs = one_of({-1, -1, 0, 1, 5, kMaxSampleTops});
    c.row.seed = rng_(), c.row.draw = rng_();
    if (rng_() % 2 == 0) add_adjustments(c);
    return c;
  }
  void add_adjustments(SampleCase& c) {
    const auto vocab_size = static_cast<int>(c.logits.size());
    c.row.repetition_penalty = one_of({1.0f, 1.1f, 0.8f, 2.0f});
    c.row.presence_penalty = one_of({0.0f, 0.5f, -1.0f});
    c.row.frequency_penalty = one_of({0.0f, 0.3f, -0.2f});
    std::vector<bool> named(vocab_size);
    const int count = one_of({0, 1, 3, 700});
    for (int i = 0; i < count; ++i) {
      const auto token = static_cast<int32_t>(rng_() % vocab_size);
      if (named[token]) continue;
      named[token] = true;
      c.adjustments.insert(c.adjustments.end(), {.token = token,
                                                 .bias = one_of({0.0f, 0.0f, 3.0f, -100.0f}),
                                                 .count = static_cast<int32_t>(rng_() % 3),
                                                 .is_repeated = static_cast<uint8_t>(rng_() % 2),
                                                 .is_banned = static_cast<uint8_t>(rng_() % 5 == 0 ? 1 : 0)});
    }
    c.row.counts_last_token = rng_() % 2;
    c.last_token = !c.adjustments.empty() && rng_() % 2 == 0 ? c.adjustments[rng_() % c.adjustments.size()].token
                                                             : static_cast<int32_t>(rng_() % vocab_size);
  }
};

}  // namespace onepass
