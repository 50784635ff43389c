#include "kernels/cuda/sample.h"

#include <gtest/gtest.h>

#include <functional>

#include "kernels/cuda/sample_fixture.h"
#include "kernels/cuda/sample_twin.h"
#include "tensor/cuda/pinned_buffer.h"

namespace onepass {
namespace {

constexpr int kVocabs[] = {7, 1000, 32000, 151936, 262144};
// As chosen for this GPU; as on one without clusters; and others.
const std::vector<std::optional<SamplePlan>> kPlans = {std::nullopt, SamplePlan{.cluster = 1, .in_shared = false},
                                                       SamplePlan{.cluster = 8, .in_shared = false},
                                                       SamplePlan{.cluster = 8, .in_shared = true}};

SampleCase greedy(std::vector<float> logits) { return {.row = {.slot = 0}, .logits = std::move(logits)}; }

TEST_F(CudaSample, GreedyTakesTheLargestAndTheSmallestIdOfATie) {
  for (const auto& plan : kPlans) {
    for (const int vocab_size : kVocabs) {
      std::vector<SampleCase> cases;
      for (int i = 0; i < 12; ++i) {
        std::vector<float> logits = normal(vocab_size, 1.0f);
        const float top = i % 3 == 0 ? 0.0f : 9.0f;
        if (i % 3 == 0) std::fill(logits.begin(), logits.end(), -0.0f);  // no less than 0
        for (int j = 0; j < i; ++j) logits[rng_() % vocab_size] = top;
        if (i > 6) logits[rng_() % vocab_size] = std::nanf("");
        if (i > 8) logits[0] = -kInf, logits[vocab_size - 1] = std::nanf("");
        cases.insert(cases.end(), greedy(std::move(logits)));
      }
      check(cases, plan);
      check(cases, plan, /*padding=*/1);  // rows that no 16-byte load can read
      check(cases, plan, /*padding=*/256);
    }
  }
}

TEST_F(CudaSample, RowsWithoutAFiniteNumberGiveNoToken) {
  for (const auto& plan : kPlans) {
    for (const int vocab_size : {1, 7, 32000}) {
      std::vector<SampleCase> cases;
      for (const float temperature : {0.0f, 1.0f}) {
        for (const float value : {std::nanf(""), -kInf, kInf}) {
          SampleCase c = greedy(std::vector<float>(vocab_size, value));
          c.row.temperature = temperature;
          cases.insert(cases.end(), c);
          c.logits = normal(vocab_size, 1.0f);
          c.logits[vocab_size / 2] = value;  // -1 for +inf alone
          if (vocab_size > 1) cases.insert(cases.end(), c);
        }
        SampleCase banned = greedy({1, 2, 3, 4, 5, 6, 7});
        banned.logits.resize(vocab_size, -kInf);
        for (int i = 0; i < std::min(7, vocab_size); ++i) {
          banned.adjustments.insert(banned.adjustments.end(), {.token = i, .is_banned = 1});
        }
        cases.insert(cases.end(), banned);
      }
      check(cases, plan);
    }
  }
}

TEST_F(CudaSample, EveryTopKFromOneToTheVocabulary) {
  for (const auto& plan : kPlans) {
    for (const int vocab_size : {7, 1000, 32000}) {
      std::vector<SampleCase> cases;
      for (int top_k = 1; top_k <= vocab_size + 1; top_k += 1 + top_k / 3) {
        for (const float deviation : {0.01f, 3.0f}) {
          SampleCase c{.row = {.slot = 0, .temperature = 1.3f, .top_k = top_k, .seed = rng_(), .draw = 5},
                       .logits = normal(vocab_size, deviation)};
          cases.insert(cases.end(), std::move(c));
        }
      }
      check(cases, plan);
    }
  }
}

TEST_F(CudaSample, EdgesOfTopPAndMinP) {
  for (const auto& plan : kPlans) {
    for (const int vocab_size : {7, 32000, 151936}) {
      std::vector<SampleCase> cases;
      for (const float top_p : {1e-20f, 0.1f, 0.9f, 0.99999f, 1.0f}) {
        for (const float min_p : {0.0f, 1e-30f, 0.3f, 1.0f}) {
          for (const float temperature : {1e-41f, 1e-3f, 0.9f, 2.0f, 1e6f}) {
            SampleCase c{.row = {.slot = 0, .temperature = temperature, .top_p = top_p, .min_p = min_p},
                         .logits = cases.size() % 2 == 0 ? peaked(vocab_size) : normal(vocab_size, 1.0f)};
            if (temperature > 2) std::fill(c.logits.begin(), c.logits.end(), 0.25f);
            c.row.seed = rng_();
            cases.insert(cases.end(), std::move(c));
          }
        }
      }
      check(cases, plan);
    }
  }
}

TEST_F(CudaSample, AdjustsAsTheHostDoes) {
  for (const auto& plan : kPlans) {
    for (const int vocab_size : {7, 32000}) {
      std::vector<SampleCase> cases;
      for (int i = 0; i < 60; ++i) {
        SampleCase c = greedy(normal(vocab_size, 0.5f));
        c.row.num_logprobs = i % 3 - 1;
        c.row.temperature = i % 2 == 0 ? 0.0f : 0.5f;
        add_adjustments(c);
        cases.insert(cases.end(), std::move(c));
      }
      // The last token alone, greedy and so close that its penalty decides.
      SampleCase last = greedy(std::vector<float>(vocab_size, 0.0f));
      last.logits[3] = 1.0f, last.logits[5] = 0.9f;
      last.row.counts_last_token = 1, last.last_token = 3;
      cases.insert(cases.end(), last);  // no penalty: 3
      last.row.repetition_penalty = 1.2f;
      cases.insert(cases.end(), last);
      last.row.repetition_penalty = 1.0f, last.row.frequency_penalty = 0.06f;
      cases.insert(cases.end(), last);  // counted once: 3
      last.adjustments = {{.token = 3, .count = 1}};
      cases.insert(cases.end(), last);  // twice: 5
      const Batch batch(cases, 0);
      const Found found = run(batch, plan);
      expect_twin(batch.cases, found);
      const std::vector<int32_t> expected = {5, 3, 5, 3};  // results are in reverse
      for (int i = 0; i < 4; ++i) EXPECT_EQ(found.results[i].token, expected[i]);
    }
  }
}

TEST_F(CudaSample, TopLogprobsOfEveryKindOfRow) {
  for (const auto& plan : kPlans) {
    for (const int vocab_size : kVocabs) {
      std::vector<SampleCase> cases;
      for (const int num_logprobs : {0, 1, 5, kMaxSampleTops}) {
        SampleCase c = greedy(peaked(vocab_size));
        c.row.num_logprobs = num_logprobs;
        cases.insert(cases.end(), c);
        c.logits = normal(vocab_size, 0.001f);
        cases.insert(cases.end(), c);
        std::fill(c.logits.begin(), c.logits.end(), -2.5f);  // ids decide
        cases.insert(cases.end(), c);
        std::fill(c.logits.begin(), c.logits.end(), -kInf);
        c.logits[vocab_size / 2] = 3.0f, c.logits[vocab_size - 1] = std::nanf("");
        cases.insert(cases.end(), c);
        c.logits = normal(vocab_size, 1e8f);
        cases.insert(cases.end(), c);
      }
      check(cases, plan);
    }
  }
}

TEST_F(CudaSample, MixedRowsAreAsTheTwinSays) {
  for (const auto& plan : kPlans) {
    for (const int vocab_size : {7, 1000, 5003, 9001, 32000, 151936}) {
      std::vector<SampleCase> cases;
      const int count = vocab_size > 100000 ? 24 : 80;
      for (int i = 0; i < count; ++i) cases.insert(cases.end(), random_case(vocab_size));
      check(cases, plan);
    }
  }
}

TEST_F(CudaSample, FollowsTheDistribution) {
  constexpr int kRows = 4000, kVocab = 2500;
  const std::vector<float> logits = peaked(kVocab);
  for (const SampleRow& base :
       {SampleRow{.temperature = 1.0f}, SampleRow{.temperature = 3.0f, .top_k = 30},
        SampleRow{.temperature = 4.0f, .top_p = 0.8f}, SampleRow{.temperature = 2.0f, .min_p = 0.02f},
        SampleRow{.temperature = 3.0f, .top_p = 0.9f, .min_p = 0.01f, .top_k = 1500}}) {
    std::vector<SampleCase> cases(kRows, SampleCase{.row = base, .logits = logits});
    for (int i = 0; i < kRows; ++i) cases[i].row.slot = 0, cases[i].row.seed = 11, cases[i].row.draw = i;
    const Found found = run(Batch(cases, 0), std::nullopt);
    std::vector<int> counts(kVocab);
    for (const SampledRow& result : found.results) ++counts.at(result.token);
    const std::vector<double> expected = SampleTwin(cases[0]).distribution();
    double chi_square = 0, rare_expected = 0, rare_found = 0;
    int bins = 0;
    const auto add = [&](double seen, double wanted) {
      chi_square += (seen - wanted) * (seen - wanted) / wanted;
      ++bins;
    };
    for (int i = 0; i < kVocab; ++i) {
      if (expected[i] == 0) {
        EXPECT_EQ(counts[i], 0) << i;
      }
      if (expected[i] * kRows >= 5) {
        add(counts[i], expected[i] * kRows);
      } else {
        rare_expected += expected[i] * kRows, rare_found += counts[i];
      }
    }
    if (rare_expected >= 5) add(rare_found, rare_expected);
    ASSERT_GT(bins, 5);
    EXPECT_LT(chi_square, bins - 1 + 5 * std::sqrt(2.0 * (bins - 1)));
  }
}

TEST_F(CudaSample, IsTheSameEachTimeAndWhateverTheNeighbours) {
  std::vector<SampleCase> cases;
  for (int i = 0; i < 40; ++i) cases.insert(cases.end(), random_case(50257));
  for (SampleCase& c : cases) c.row.slot = 0;
  const Found first = run(Batch(cases, 0), std::nullopt);
  const auto same = [](const auto& a, const auto& b) {
    return a.token == b.token && std::bit_cast<uint32_t>(a.logprob) == std::bit_cast<uint32_t>(b.logprob);
  };
  for (int repeat = 0; repeat < 5; ++repeat) {
    const Found again = run(Batch(cases, 0), std::nullopt);
    EXPECT_TRUE(std::equal(first.results.begin(), first.results.end(), again.results.begin(), same));
    EXPECT_TRUE(std::equal(first.tops.begin(), first.tops.end(), again.tops.begin(), same));
  }
  for (size_t i = 0; i < cases.size(); i += 7) {
    const Found alone = run(Batch({cases[i]}, 0), std::nullopt);
    EXPECT_TRUE(same(alone.results[0], first.results[cases.size() - 1 - i])) << i;
  }
}

TEST_F(CudaSample, ACapturedLaunchTakesWhatTheMemoryHolds) {
  constexpr int kVocab = 32000, kRows = 9;
  const auto make = [&] {
    std::vector<SampleCase> cases;
    for (int i = 0; i < kRows; ++i) {
      SampleCase c = random_case(kVocab);
      c.adjustments.resize(std::min<size_t>(2, c.adjustments.size()));  // so that all fit into the first batch's memory
      while (c.adjustments.size() < 2) {
        c.adjustments.insert(c.adjustments.end(), {.token = static_cast<int32_t>(i + c.adjustments.size()) * 100});
      }
      if (c.adjustments[0].token == c.adjustments[1].token) c.adjustments[1].token ^= 1;
      cases.insert(cases.end(), std::move(c));
    }
    return Batch(std::move(cases), 0);
  };
  Batch captured = make();
  StatusOr<CudaGraph> graph =
      CudaGraph::capture(*stream_, [&] { return run_sample_cuda(captured.params(), stream_->get()); });
  ASSERT_TRUE(graph.ok()) << graph.status();
  for (int repeat = 0; repeat < 4; ++repeat) {
    const Batch next = make();
    for (int i = 0; i < 6; ++i) {
      std::vector<std::byte> bytes(next.buffers[i].size());
      ASSERT_EQ(bytes.size(), captured.buffers[i].size());
      ASSERT_TRUE(next.buffers[i].download(bytes).ok());
      ASSERT_TRUE(captured.buffers[i].upload(bytes).ok());
    }
    ASSERT_TRUE(graph->launch(*stream_).ok());
    ASSERT_TRUE(stream_->synchronize().ok());
    expect_twin(next.cases, captured.found());
  }
}

TEST_F(CudaSample, ResultsMayLieInPageLockedHostMemory) {
  constexpr int kRows = 20;
  std::vector<SampleCase> cases;
  for (int i = 0; i < kRows; ++i) cases.insert(cases.end(), random_case(32000));
  const Batch batch(cases, 0);
  const Found expected = run(batch, std::nullopt);
  const Batch again(cases, 0);
  const PinnedBuffer results = PinnedBuffer::allocate(kRows * sizeof(SampledRow)).value();
  const PinnedBuffer tops = PinnedBuffer::allocate(kRows * kMaxSampleTops * sizeof(TopLogprob)).value();
  const Found before = again.found();  // what is not written stays
  std::copy(before.results.begin(), before.results.end(), results.as<SampledRow>());
  std::copy(before.tops.begin(), before.tops.end(), tops.as<TopLogprob>());
  CudaSampleParams params = again.params();
  params.results = results.as<SampledRow>(), params.top_logprobs = tops.as<TopLogprob>();
  ASSERT_TRUE(run_sample_cuda(params, stream_->get()).ok());
  ASSERT_TRUE(stream_->synchronize().ok());
  const auto same = [](const auto& a, const auto& b) { return a.token == b.token && a.logprob == b.logprob; };
  EXPECT_TRUE(std::equal(expected.results.begin(), expected.results.end(), params.results, same));
  EXPECT_TRUE(std::equal(expected.tops.begin(), expected.tops.end(), params.top_logprobs, same));
}

TEST_F(CudaSample, RefusesWhatIsWrong) {
  Batch batch({greedy(std::vector<float>(7))}, 0);
  const auto message = [&](const std::function<void(CudaSampleParams&)>& change) {
    CudaSampleParams params = batch.params();
    change(params);
    return std::string(run_sample_cuda(params, stream_->get()).message());
  };
  EXPECT_EQ(message([](auto& p) { p.vocab_size = 0; }), "sample: vocab_size: expected at least 1, found 0");
  EXPECT_EQ(message([](auto& p) { p.num_rows = -1; }), "sample: num_rows: expected at least 0, found -1");
  EXPECT_EQ(message([](auto& p) { p.row_stride = 6; }),
            "sample: row_stride: expected at least vocab_size = 7, found 6");
  EXPECT_EQ(message([](auto& p) { p.tokens = nullptr; }),
            "sample: logits, rows, tokens and results: expected addresses, found a null one");
  EXPECT_EQ(message([](auto& p) { p.num_rows = 0, p.logits = nullptr; }), "");
  EXPECT_EQ(std::string(run_sample_cuda(batch.params(), {.cluster = 3}, stream_->get()).message()),
            "sample: plan: cluster: expected 1, 2, 4 or 8, found 3");
}

}  // namespace
}  // namespace onepass
