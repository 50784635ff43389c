// The producers of the Hopper prefill kernel for pages that the copy engine would bring in too many small boxes, or
// that blocks of keys cannot be cut into: warps that gather rows by asynchronous copies of 16 bytes.
#pragma once

#include <cstddef>

#include "attention/cuda/hopper_prefill_kernel.cuh"

namespace onepass::hopper {

// All producers but the scheduler.
constexpr int kGatherWarps = 3;

// Copies K and V row by row into the layout that a tensor map makes. Each thread's copies arrive at the block's barrier
// by themselves when they have landed, so no warp waits for memory, only for room. What copies of threads have written
// is not what the tensor cores read until somebody has fenced: the consumers do, behind their wait.
template <typename Config>
class PrefillGatherer {
  static constexpr int kKeys = Config::kKeys;
  static constexpr int kWarps = kGatherWarps;
  static constexpr int kGroups = kKeys / 32;  // of rows, each copied by one warp
  static_assert(kGroups <= 2 * kWarps);
  static constexpr int kAbreast = 4;  // copies of a lane whose addresses are made first

 public:
  __device__ PrefillGatherer(const PrefillArgs& args, PrefillShared<Config> shared, int warp)
      : args_(args), shared_(shared), warp_(warp), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    while (true) {
      barrier_wait(shared_.tile_full(tiles_ % Config::kTileSlots), tiles_ / Config::kTileSlots % 2);
      // A word at a time: all of it at once takes too many registers.
      const uint32_t tile = shared_.tile(tiles_ % Config::kTileSlots);
      const int rows = uniform(load_shared_4(tile + offsetof(PrefillTile, rows)));
      seqlen_k_ = uniform(load_shared_4(tile + offsetof(PrefillTile, seqlen_k)));
      const int first_block = uniform(load_shared_4(tile + offsetof(PrefillTile, first_block)));
      const int end_block = uniform(load_shared_4(tile + offsetof(PrefillTile, end_block)));
      head_kv_ = uniform(load_shared_4(tile + offsetof(PrefillTile, head_kv)));
      table_row_ = uniform(load_shared_4(tile + offsetof(PrefillTile, request))) *
                   static_cast<uint32_t>(args_.page_table_stride);
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.tile_empty(tiles_ % Config::kTileSlots));
      ++tiles_;
      if (rows == 0) break;
      // In the order in which the consumers ask for blocks: keys are a block ahead of values.
      for (int n = end_block - 1; n >= first_block; --n) {
        // Blocks go from the last to the first: the next block's page ids will be in the L1 cache.
        if (n > 0) prefetch_l1(page_id((n - 1) * kKeys + lane_ * kGroups));
        if (warp_ == 0 && lane_ == 0 && n == min(first_block + 1, end_block - 1)) {
          barrier_arrive(shared_.tile_wanted());
        }
        copy<false>(n);
        if (n + 1 < end_block) copy<true>(n + 1);
      }
      copy<true>(first_block);
    }
    copies_wait();
  }

 private:
  static constexpr uint32_t kNoRow = ~0u;

  // Where the page id of a key is found. Not to be read for keys past the sequence's end.
  __device__ const int32_t* page_id(int key) const {
    return args_.page_table + (table_row_ + static_cast<uint32_t>(divide(key, args_.page_size)));
  }

  // Where the head's row of a key is, in pieces of 16 bytes.
  __device__ uint32_t find(const PrefillRows& rows, int key) const {
    if (key >= seqlen_k_) return kNoRow;
    const int in_page = key - divide(key, args_.page_size) * static_cast<int>(args_.page_size.divisor);
    return __ldg(page_id(key)) * rows.page_stride + in_page * rows.row_stride + head_kv_ * rows.head_stride;
  }

  // The warp's share of block n of K or V.
  template <bool kValues>
  __device__ void copy(int n) {
    constexpr int kStages = kValues ? Config::kValueStages : Config::kKeyStages;
    const PrefillRows& rows = kValues ? args_.v_rows : args_.k_rows;
    uint32_t& issued = kValues ? issued_values_ : issued_keys_;
    // Groups are dealt out in turns over all blocks.
    const int group = (warp_ + issued * (kWarps - kGroups % kWarps)) % kWarps;
    const int key = n * kKeys + 32 * group;
    const uint32_t first = group < kGroups ? find(rows, key + lane_) : 0;
    const uint32_t second = group + kWarps < kGroups ? find(rows, key + 32 * kWarps + lane_) : 0;
    const int slot = issued % kStages;
    barrier_wait(kValues ? shared_.value_empty(slot) : shared_.key_empty(slot), issued / kStages % 2 ^ 1);
    const uint32_t to = (kValues ? shared_.value(slot) : shared_.key(slot)) + 32 * group * 128;
    if (group < kGroups) copy_group<kValues>(to, first);
    if (group + kWarps < kGroups) copy_group<kValues>(to + 32 * kWarps * 128, second);
    barrier_arrive_after_copies(kValues ? shared_.value_full(slot) : shared_.key_full(slot));
    ++issued;
  }

  // 32 rows, each found by one lane.
  template <bool kValues>
  __device__ void copy_group(uint32_t to, uint32_t rows) const {
    // Eight lanes copy 128 bytes of a row.
    const char* data = static_cast<const char*>((kValues ? args_.v_rows : args_.k_rows).data);
    // The lane's piece of rows 0 to 3 of eight; that of rows 4 to 7 is the other by bit 6.
    to += lane_ / 8 * 128 + ((lane_ % 8) ^ (lane_ / 8)) * 16;
#pragma unroll
    for (int j = 0; j < 8; j += kAbreast) {
      uint32_t row[kAbreast];
#pragma unroll
      for (int i = 0; i < kAbreast; ++i) row[i] = __shfl_sync(0xFFFFFFFF, rows, 4 * (j + i) + lane_ / 8);
#pragma unroll
      for (int i = 0; i < kAbreast; ++i) {
        const char* from = data + uint64_t{row[i] + lane_ % 8} * 16;
        const uint32_t at = (to ^ ((j + i) % 2 * 64)) + 4 * (j + i) * 128;
#pragma unroll
        for (int panel = 0; panel < (kValues ? Config::kPanelsV : Config::kPanels); ++panel) {
          copy_16_or_zeros(at + panel * kKeys * 128, from + panel * 128, row[i] != kNoRow);
        }
      }
    }
  }

  const PrefillArgs& args_;
  PrefillShared<Config> shared_;
  const int warp_;  // of those that gather
  const int lane_;
  uint32_t tiles_ = 0;
  uint32_t issued_keys_ = 0;  // blocks
  uint32_t issued_values_ = 0;
  // Of the current tile.
  int seqlen_k_ = 0;
  uint32_t table_row_ = 0;  // of the page table's entries
  int head_kv_ = 0;
};

}  // namespace onepass::hopper
