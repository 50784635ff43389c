// How run_hopper_linear divides a shape among thread blocks: pure host code.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/cuda_info.h"

namespace onepass {

struct HopperLinearPlan {
  int tile_rows = 64;  // of the weights that a thread block takes at a time: one of kHopperTileRows
  int cluster = 1;     // thread blocks, with a tile each, that share x: 1, 2 or 4

  bool operator==(const HopperLinearPlan&) const = default;
};

inline constexpr int kHopperTileRows[] = {32, 48, 64, 96, 128, 192, 224};
// Rows of x that a warpgroup takes, and at most.
inline constexpr int64_t kHopperWarpgroupRows = 64;
inline constexpr int64_t kHopperLinearRows = 2 * kHopperWarpgroupRows;

// Of a plan from a file.
bool is_valid(const HopperLinearPlan& plan);

// "hopper-48-c4": tile_rows, cluster.
std::string to_string(const HopperLinearPlan& plan);

// Those worth a try for y of y_cols columns, best guess first; none for another GPU than Hopper's, where num_rows is
// beyond kHopperLinearRows, or so small that run_stream_linear has it. A gated tile has half as many columns of y.
std::vector<HopperLinearPlan> hopper_linear_plans(int64_t y_cols, bool gated, int64_t num_rows, const GpuInfo& gpu);

}  // namespace onepass
