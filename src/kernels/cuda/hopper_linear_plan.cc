#include "kernels/cuda/hopper_linear_plan.h"

#include <algorithm>
#include <ranges>

#include "base/status.h"

namespace onepass {
namespace {

constexpr int64_t kFewestRows = 9;  // below, half of the products and more would be of rows that are not there
constexpr size_t kMostPlans = 6;    // each takes a millisecond or two to be tried

// Rows of the weights that the busiest thread block reads.
int64_t busiest(const HopperLinearPlan& plan, int64_t y_cols, bool gated, const GpuInfo& gpu) {
  const int64_t tile_cols = gated ? plan.tile_rows / 2 : plan.tile_rows;
  const int64_t at_once = tile_cols * plan.cluster;
  const int64_t groups = (y_cols + at_once - 1) / at_once, clusters = gpu.multiprocessors / plan.cluster;
  return (groups + clusters - 1) / clusters * plan.tile_rows;
}

}  // namespace

bool is_valid(const HopperLinearPlan& plan) {
  return std::ranges::find(kHopperTileRows, plan.tile_rows) != std::end(kHopperTileRows) &&
         (plan.cluster == 1 || plan.cluster == 2 || plan.cluster == 4);
}

std::string to_string(const HopperLinearPlan& plan) { return str_cat("hopper-", plan.tile_rows, "-c", plan.cluster); }

std::vector<HopperLinearPlan> hopper_linear_plans(int64_t y_cols, bool gated, int64_t num_rows, const GpuInfo& gpu) {
  std::vector<HopperLinearPlan> plans;
  if (gpu.compute_capability != 90 || num_rows < kFewestRows || num_rows > kHopperLinearRows) return plans;
  for (const int tile_rows : kHopperTileRows) {
    for (const int cluster : {1, 2, 4}) plans.push_back({.tile_rows = tile_rows, .cluster = cluster});
  }
  // What the busiest block has to read counts most. That x comes from the L2 cache for each tile counts a little; that
  // a cluster brings it once is seldom worth its blocks' waiting for one another (4,096 x 4,096 with 64 rows of x: 13.3
  // us alone, 18.1 by two).
  const auto cost = [&](const HopperLinearPlan& plan) {
    const auto rows = static_cast<double>(busiest(plan, y_cols, gated, gpu));
    return rows * (1.0 + 2.0 / plan.tile_rows) * (plan.cluster == 1 ? 1.0 : 1.1);
  };
  std::ranges::stable_sort(plans, {}, cost);
  plans.resize(std::min(plans.size(), kMostPlans));
  return plans;
}

}  // namespace onepass
