#include "kernels/cuda/stream_linear_plan.h"

#include <algorithm>

namespace onepass {
namespace {

constexpr int64_t kReservedBytes = 1024;  // that the driver takes of an SM's shared memory for each block

constexpr int64_t kNormRows = 8;     // with more, every block's own norm costs more than a kernel's
constexpr int64_t kFewNormRows = 2;  // with so few it costs less

int max_cluster(const GpuInfo& gpu) { return gpu.compute_capability >= 90 ? 8 : 1; }

bool fits(int64_t cols, int64_t num_rows, const StreamLinearPlan& plan, const GpuInfo& gpu) {
  const int64_t bytes = stream_linear_shared_bytes(cols, num_rows, plan);
  return plan.blocks_per_sm * (bytes + kReservedBytes) <= gpu.shared_memory_bytes + kReservedBytes;
}

// The smallest cluster with which x fits: larger ones lost 5 to 50% to their barriers, wherever they were tried.
bool find_cluster(int64_t cols, int64_t num_rows, StreamLinearPlan& plan, const GpuInfo& gpu) {
  for (plan.cluster = 1; plan.cluster <= max_cluster(gpu); plan.cluster *= 2) {
    if (fits(cols, num_rows, plan, gpu)) return true;
  }
  return false;
}

}  // namespace

bool is_valid(const StreamLinearPlan& plan) {
  return (plan.tile_rows == 8 || plan.tile_rows == 16) &&
         (plan.x_tiles == 1 || plan.x_tiles == 2 || plan.x_tiles == 4) &&
         (plan.cluster == 1 || plan.cluster == 2 || plan.cluster == 4 || plan.cluster == 8) &&
         (plan.blocks_per_sm == 1 || plan.blocks_per_sm == 2) &&
         (!plan.norm_inside || (plan.cluster == 1 && plan.x_tiles == 1));
}

std::string to_string(const StreamLinearPlan& plan) {
  return str_cat("stream-", plan.tile_rows, "x", 8 * plan.x_tiles, "-c", plan.cluster, "-b", plan.blocks_per_sm,
                 plan.norm_inside ? "-norm" : "");
}

int stream_ring_bytes(int64_t rows, int64_t cols, int64_t clusters, const StreamLinearPlan& plan) {
  const int64_t tiles = (rows + plan.tile_rows - 1) / plan.tile_rows,
                tiles_of_block = (tiles + clusters - 1) / clusters;
  const int64_t chunks = (cols + kStreamChunk - 1) / kStreamChunk, warps = int64_t{plan.cluster} * kStreamWarps;
  const int64_t stages = (chunks + warps - 1) / warps * tiles_of_block;
  return static_cast<int>(std::min<int64_t>(stages, stream_stages(plan.tile_rows))) * kStreamWarps *
         stream_stage_bytes(plan.tile_rows);
}

int64_t stream_linear_shared_bytes(int64_t cols, int64_t num_rows, const StreamLinearPlan& plan) {
  const int64_t chunks = (cols + kStreamChunk - 1) / kStreamChunk;
  return kStreamRingBytes + 2 * stream_sums_bytes(plan.tile_rows, plan.x_tiles) +
         2 * stream_parts_bytes(plan.tile_rows, plan.x_tiles) +
         std::min<int64_t>(num_rows, 8 * plan.x_tiles) *
             ((chunks + plan.cluster - 1) / plan.cluster * kStreamChunk * 2 + kStreamXPadding);
}

std::vector<StreamLinearPlan> stream_linear_plans(int64_t cols, int64_t num_rows, bool has_norm, const GpuInfo& gpu) {
  std::vector<StreamLinearPlan> plans;
  if (num_rows > kStreamLinearRows) return plans;
  const int x_tiles = num_rows <= 8 ? 1 : num_rows <= 16 ? 2 : 4;
  for (const int tile_rows : {8, 16}) {
    for (const int blocks_per_sm : {2, 1}) {
      StreamLinearPlan plan{.tile_rows = tile_rows, .x_tiles = x_tiles, .blocks_per_sm = blocks_per_sm};
      if (!find_cluster(cols, num_rows, plan, gpu)) continue;
      plans.push_back(plan);
      plan.norm_inside = true;
      if (has_norm && num_rows <= kNormRows && stream_linear_can_norm(cols, plan)) plans.push_back(plan);
    }
  }
  return plans;
}

StatusOr<StreamLinearPlan> batch_invariant_plan(int64_t cols, int64_t num_rows, bool has_norm, const GpuInfo& gpu) {
  StreamLinearPlan plan;
  if (!find_cluster(cols, 8, plan, gpu)) {
    return unimplemented(
        "linear: cols: expected so few that 8 rows fit into shared memory for the same sums in every batch, found ",
        cols);
  }
  for (const int x_tiles : {2, 4}) {
    StreamLinearPlan wider = plan;
    wider.x_tiles = x_tiles;
    if (num_rows > 4 * x_tiles && fits(cols, num_rows, wider, gpu)) plan = wider;
  }
  // Half as high a tile reads x twice as often, and divides better among the SMs.
  if (num_rows <= 8) plan.tile_rows = 8;
  plan.blocks_per_sm = 2;
  if (!fits(cols, num_rows, plan, gpu)) plan.blocks_per_sm = 1;
  plan.norm_inside = has_norm && num_rows <= kFewNormRows && stream_linear_can_norm(cols, plan);
  return plan;
}

}  // namespace onepass
