// The host's part of the decode plan; what the planning kernel makes of it is tested on a GPU with the kernels.
#include "attention/cuda/hopper_decode_plan.h"

#include <gtest/gtest.h>

#include <random>

namespace onepass::hopper_decode {
namespace {

uint64_t quotient(uint64_t n, const Divisor& divisor) { return (n * divisor.magic) >> divisor.shift; }

TEST(HopperDecodePlan, DividesByMultiplication) {
  std::mt19937_64 rng(1);
  constexpr uint64_t kMost = (uint64_t{1} << 31) - 1;
  for (int i = 0; i < 2000; ++i) {
    const int value = i < 300 ? i + 1 : static_cast<int>(1 + rng() % (kMost >> rng() % 31));
    const Divisor divisor = make_divisor(value);
    const uint64_t last = kMost / value * value;  // quotients change here
    for (uint64_t n :
         {uint64_t{0}, uint64_t(value - 1), uint64_t(value), last - (last > 0), last, kMost, rng() % kMost}) {
      EXPECT_EQ(quotient(n, divisor), n / value) << n << " / " << value;
    }
  }
}

TEST(HopperDecodePlan, LeavesFewMultiprocessorsWithoutWork) {
  for (int heads = 1; heads <= 160; ++heads) {
    const AttentionParams params = {
        .batch = 3, .num_heads = heads, .num_heads_kv = heads, .head_dim = 128, .head_dim_v = 128};
    const Layout layout = make_layout(params, /*multiprocessors=*/132, /*slot_rows=*/4);
    EXPECT_EQ(heads % layout.heads_abreast, 0);
    EXPECT_GE(layout.workers * layout.heads_abreast, 126) << heads << " heads";
    EXPECT_LE(layout.workers * layout.heads_abreast, 132) << heads << " heads";
  }
}

TEST(HopperDecodePlan, TakesEightHeadsAbreast) {
  const AttentionParams params = {.batch = 1, .num_heads = 32, .num_heads_kv = 8, .head_dim = 128, .head_dim_v = 128};
  EXPECT_EQ(make_layout(params, 132, 4).heads_abreast, 8);
  EXPECT_EQ(make_layout(params, 132, 4).workers, 16);
}

}  // namespace
}  // namespace onepass::hopper_decode
