#include "attention/reference/merge.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "attention/reference/reference_attention.h"
#include "attention/testing/attention_problem.h"

namespace onepass {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(MergeAttentionStates, PartsOfRandomCutsGiveTheWhole) {
  std::mt19937_64 rng(7);
  for (int round = 0; round < 60; ++round) {
    const int seqlen = 1 + static_cast<int>(rng() % 90);
    const bool sinks = round % 2 == 1;
    const AttentionProblem problem({.seed = rng(),
                                    .seqlens_q = {1},
                                    .seqlens_k = {seqlen},
                                    .num_heads = 1,
                                    .num_heads_kv = 1,
                                    .head_dim = 16,
                                    .head_dim_v = 24,
                                    .page_size = 0,
                                    .sinks = sinks,
                                    .score_deviation = round % 3 == 0 ? 30.0f : 1.0f});
    const AttentionResult whole = problem.run_reference();

    // Cut the keys anywhere, twice in the same place now and then, so that some parts are empty.
    std::vector<int32_t> cuts = {0, seqlen};
    for (uint64_t n = rng() % 6; n > 0; --n) cuts.push_back(rng() % (seqlen + 1));
    std::sort(cuts.begin(), cuts.end());
    const size_t num_parts = cuts.size() - 1;
    std::vector<std::vector<float>> outs(num_parts + 1, std::vector<float>(24, kNaN));
    std::vector<AttentionState> parts;
    for (size_t n = 0; n < num_parts; ++n) {
      const int32_t part_keys = cuts[n + 1] - cuts[n];
      float lse = 0.0f;
      AttentionParams params = problem.params();
      params.cu_seqlens_k = &cuts[n];
      params.cache_seqlens = &part_keys;
      params.causal = false;
      params.sinks = nullptr;
      params.out = outs[n].data();
      params.softmax_lse = &lse;
      reference_attention(params);
      if (part_keys == 0) outs[n].assign(24, kNaN);  // an empty part's output must not matter
      parts.push_back({outs[n].data(), lse});
    }
    if (sinks) {
      outs.back().assign(24, 0.0f);
      parts.push_back({outs.back().data(), problem.params().sinks[0]});
    }
    std::shuffle(parts.begin(), parts.end(), rng);

    AttentionResult merged{.num_heads = 1, .head_dim_v = 24, .out = std::vector<float>(24), .lse = {0.0f}};
    merged.lse[0] = merge_attention_states(parts, merged.out);
    const AttentionDifference difference = compare(merged, whole);
    // The parts' lse are float32: at 60 an error of 2e-6, and the same relative error in their weights.
    EXPECT_LE(difference.max_out, 1e-5) << difference.worst;
    EXPECT_LE(difference.max_lse, 1e-5) << difference.worst;

    // Two at a time, into the first one's memory.
    std::vector<float> running(24, kNaN);
    float running_lse = -kInfinity;
    for (const AttentionState& part : parts) {
      running_lse = merge_attention_states({running.data(), running_lse}, part, running);
    }
    const AttentionDifference pairwise = compare({1, 24, running, {running_lse}}, whole);
    EXPECT_LE(pairwise.max_out, 2e-5) << pairwise.worst;
    EXPECT_LE(pairwise.max_lse, 2e-5) << pairwise.worst;
  }
}

TEST(MergeAttentionStates, EmptyPartsAreTheNeutralElement) {
  const std::vector<float> value = {0.1f, -3.7f, 1e-30f, 2e30f};
  const AttentionState part{value.data(), 12.34f};
  const AttentionState empty{nullptr, -kInfinity};
  std::vector<float> out(4, kNaN);
  EXPECT_EQ(merge_attention_states(part, empty, out), 12.34f);
  EXPECT_EQ(out, value);
  EXPECT_EQ(merge_attention_states(empty, part, out), 12.34f);
  EXPECT_EQ(out, value);
  EXPECT_EQ(merge_attention_states(empty, empty, out), -kInfinity);
  EXPECT_EQ(out, std::vector<float>(4, 0.0f));
  out.assign(4, kNaN);
  EXPECT_EQ(merge_attention_states({}, out), -kInfinity);
  EXPECT_EQ(out, std::vector<float>(4, 0.0f));
}

TEST(MergeAttentionStates, DoesNotOverflowAndShowsNaN) {
  const float one = 1.0f;
  const float three = 3.0f;
  float out = 0.0f;
  EXPECT_FLOAT_EQ(merge_attention_states({&one, 5000.0f}, {&three, 5000.0f}, {&out, 1}), 5000.0f + std::log(2.0f));
  EXPECT_EQ(out, 2.0f);
  EXPECT_FLOAT_EQ(merge_attention_states({&one, 5000.0f}, {&three, -5000.0f}, {&out, 1}), 5000.0f);
  EXPECT_EQ(out, 1.0f);
  EXPECT_TRUE(std::isnan(merge_attention_states({&one, kNaN}, {nullptr, -kInfinity}, {&out, 1})));
  EXPECT_TRUE(std::isnan(out));
}

}  // namespace
}  // namespace onepass
