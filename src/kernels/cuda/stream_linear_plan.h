// How run_stream_linear divides a shape among thread blocks: pure host code.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "tensor/cuda_info.h"

namespace onepass {

// What a row's sums are, bit for bit, depends on cols and cluster alone.
struct StreamLinearPlan {
  int tile_rows = 16;     // of the weights that a thread block takes at a time: 8 or 16
  int x_tiles = 1;        // tiles of 8 rows of x at a time: 1, 2 or 4; the weights are read again for those beyond
  int cluster = 1;        // thread blocks that share a tile's columns: 1, 2, 4 or 8
  int blocks_per_sm = 1;  // 1 or 2
  // A norm before the product: by every block for itself, or by a kernel of its own.
  bool norm_inside = false;

  bool operator==(const StreamLinearPlan&) const = default;
};

// Of a plan from a file.
bool is_valid(const StreamLinearPlan& plan);

// "stream-16x8-c1-b1": tile_rows, rows of x at a time, cluster, blocks_per_sm; "-norm" with the norm inside.
std::string to_string(const StreamLinearPlan& plan);

// Rows of x up to which the kernel may be the fastest.
inline constexpr int64_t kStreamLinearRows = 32;

// Those worth a try, best guess first; none where num_rows is beyond kStreamLinearRows or x does not fit. has_norm: the
// product comes after a norm, which some of them take in.
std::vector<StreamLinearPlan> stream_linear_plans(int64_t cols, int64_t num_rows, bool has_norm, const GpuInfo& gpu);

// Whether a block can normalise its rows of x by itself: it has their columns, and the sums are those of the norm's own
// kernel for so many.
inline constexpr int kStreamNormCols = 8192;
inline bool stream_linear_can_norm(int64_t cols, const StreamLinearPlan& plan) {
  return plan.cluster == 1 && plan.x_tiles == 1 && cols > kStreamNormCols / 32 && cols <= kStreamNormCols;
}

// A row's sums are the same with all plans for these columns, whatever num_rows. The error says what is too large.
StatusOr<StreamLinearPlan> batch_invariant_plan(int64_t cols, int64_t num_rows, bool has_norm, const GpuInfo& gpu);

// --- What the kernel has in shared memory, in bytes, in this order --------------------------------------------------

inline constexpr int kStreamWarps = 8;
inline constexpr int kStreamThreads = kStreamWarps * 32;
inline constexpr int kStreamChunk = 64;             // columns of a stage: a line of 128 bytes of each row
inline constexpr int kStreamRingBytes = 64 * 1024;  // the warps' rings of weights: 48 or 56 KiB are on their way
constexpr int stream_stage_bytes(int tile_rows) { return tile_rows * kStreamChunk * 2; }  // of a warp
constexpr int stream_stages(int tile_rows) { return kStreamRingBytes / (kStreamWarps * stream_stage_bytes(tile_rows)); }
// A warp's sums of a tile: 4 floats more for each row of x than there are sums, so that its lanes meet no bank twice.
constexpr int stream_sum_pitch(int tile_rows) { return tile_rows + 4; }
constexpr int stream_sums_bytes(int tile_rows, int x_tiles) {
  return kStreamWarps * 8 * x_tiles * stream_sum_pitch(tile_rows) * 4;
}
// The cluster's sums of this block's share of a tile.
constexpr int stream_parts_bytes(int tile_rows, int x_tiles) { return tile_rows * 8 * x_tiles * 4; }
// After each row of x: half a line, so that 8 lanes of two rows meet no bank twice.
inline constexpr int kStreamXPadding = 64;

// A launch of `clusters` of thread blocks for a product of `rows` by `cols`. Where a block's weights are fewer than a
// ring holds, the ring is no larger than they are: so that the next kernel's blocks find room beside it, and have their
// weights when it ends.
int stream_ring_bytes(int64_t rows, int64_t cols, int64_t clusters, const StreamLinearPlan& plan);
// All of it, at most: with a whole ring.
int64_t stream_linear_shared_bytes(int64_t cols, int64_t num_rows, const StreamLinearPlan& plan);

}  // namespace onepass
