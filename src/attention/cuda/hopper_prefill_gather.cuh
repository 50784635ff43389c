// The producers of the Hopper prefill kernel for pages that the copy engine would bring in too many small boxes, or
// that blocks of keys cannot be cut into: warps that gather rows by asynchronous copies of 16 bytes.
#pragma once

#include <cstddef>

#include "attention/cuda/hopper_prefill_kernel.cuh"

namespace onepass::hopper {

// All producers but the scheduler.
constexpr int kGatherWarps = 3;

// Copies K and V row by row into the layout that a tensor map makes. What threads have written is not what the tensor
// cores read until the threads have waited for their copies and fenced. So that no warp waits for memory, it hands a
// block over to the consumers two blocks later, or when there is no room for the next.
template <typename Config>
class PrefillGatherer {
  static constexpr int kKeys = Config::kKeys;
  static constexpr int kWarps = kGatherWarps;
  static constexpr int kGroups = kKeys / 32;  // of rows, each copied by one warp
  static_assert(kGroups <= 2 * kWarps);
  static constexpr int kLag = 2;  // hand_over() knows of no more
  static constexpr int kAbreast =
      Config::kProducerRegisters > 40 ? 4 : 1;  // copies of a lane whose addresses are made first

 public:
  __device__ PrefillGatherer(const PrefillArgs& args, PrefillShared<Config> shared, int warp)
      : args_(args), shared_(shared), warp_(warp), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    while (true) {
      wait(shared_.tile_full(tiles_ % Config::kTileSlots), tiles_ / Config::kTileSlots % 2);
      // A word at a time: all of it at once takes too many registers.
      const uint32_t tile = shared_.tile(tiles_ % Config::kTileSlots);
      const int rows = load_shared_4(tile + offsetof(PrefillTile, rows));
      seqlen_k_ = load_shared_4(tile + offsetof(PrefillTile, seqlen_k));
      const int first_block = load_shared_4(tile + offsetof(PrefillTile, first_block));
      const int end_block = load_shared_4(tile + offsetof(PrefillTile, end_block));
      head_kv_ = load_shared_4(tile + offsetof(PrefillTile, head_kv));
      table_ = args_.page_table + load_shared_4(tile + offsetof(PrefillTile, request)) * args_.page_table_stride;
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.tile_empty(tiles_ % Config::kTileSlots));
      ++tiles_;
      if (rows == 0) break;
      asm volatile("" : "+l"(table_));  // whole, not to be made anew from its parts at each use
      // In the order in which the consumers ask for blocks: keys are a block ahead of values.
      for (int n = end_block - 1; n >= first_block; --n) {
        // Blocks go from the last to the first: the next block's page ids will be in the L1 cache.
        if (n > 0) prefetch_l1(page_id((n - 1) * kKeys + lane_ * kGroups));
        copy<false>(n);
        if (n + 1 < end_block) copy<true>(n + 1);
      }
      copy<true>(first_block);
    }
    while (pending_ != 1) hand_over();
  }

 private:
  // Where the page id of a key is found. Not to be read for keys past the sequence's end.
  __device__ const int32_t* page_id(int key) const { return table_ + divide(key, args_.page_size); }

  // Where the row of a key is, in pieces of 16 bytes.
  __device__ uint32_t find(const PrefillRows& rows, int key) const {
    if (key >= seqlen_k_) return 0;
    const int in_page = key - divide(key, args_.page_size) * static_cast<int>(args_.page_size.divisor);
    return __ldg(page_id(key)) * rows.page_stride + in_page * rows.row_stride;
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
    wait(kValues ? shared_.value_empty(slot) : shared_.key_empty(slot), issued / kStages % 2 ^ 1);
    const uint32_t to = (kValues ? shared_.value(slot) : shared_.key(slot)) + 32 * group * 128;
    // Eight lanes copy 128 bytes of a row.
    const char* from = static_cast<const char*>(rows.data) + (head_kv_ * int64_t{rows.head_stride} + lane_ % 8) * 16;
    if (group < kGroups) copy_group<kValues>(to, from, first, key);
    if (group + kWarps < kGroups) copy_group<kValues>(to + 32 * kWarps * 128, from, second, key + 32 * kWarps);
    copies_commit();
    ++issued;
    pending_ = pending_ << 1 | kValues;
    if (pending_ >= 2 << kLag) hand_over();
  }

  // 32 rows, each found by one lane.
  template <bool kValues>
  __device__ void copy_group(uint32_t to, const char* source, uint32_t rows, int key) const {
    // The lane's piece of rows 0 to 3 of eight; that of rows 4 to 7 is the other by bit 6.
    to += lane_ / 8 * 128 + ((lane_ % 8) ^ (lane_ / 8)) * 16;
    const int valid = seqlen_k_ - key - lane_ / 8;
#pragma unroll
    for (int j = 0; j < 8; j += kAbreast) {
      uint32_t row[kAbreast];
#pragma unroll
      for (int i = 0; i < kAbreast; ++i) row[i] = __shfl_sync(0xFFFFFFFF, rows, 4 * (j + i) + lane_ / 8);
#pragma unroll
      for (int i = 0; i < kAbreast; ++i) {
        const char* from = source + uint64_t{row[i]} * 16;
        const uint32_t at = (to ^ ((j + i) % 2 * 64)) + 4 * (j + i) * 128;
#pragma unroll
        for (int panel = 0; panel < (kValues ? Config::kPanelsV : Config::kPanels); ++panel) {
          copy_16_or_zeros(at + panel * kKeys * 128, from + panel * 128, 4 * (j + i) < valid);
        }
      }
    }
  }

  // Waits for the end of a phase. What has been copied is handed over first if that is not at once: the consumers may
  // need it to get there.
  __device__ void wait(uint32_t barrier, uint32_t parity) {
    if (!__all_sync(0xFFFFFFFF, barrier_test(barrier, parity))) {
      while (pending_ != 1) hand_over();
      barrier_wait(barrier, parity);
    }
  }

  // The block that was issued first of those that the consumers do not have yet.
  __device__ void hand_over() {
    uint32_t first;  // the bit that says which it is
    if (pending_ < 4) {
      copies_wait<0>();
      first = 1;
    } else if (pending_ < 8) {
      copies_wait<1>();
      first = 2;
    } else {
      copies_wait<2>();
      first = 4;
    }
    fence_async_proxy();
    __syncwarp();
    const bool values = (pending_ & first) != 0;
    // Of its kind, it and those behind it are pending.
    const int behind = __popc((values ? pending_ : ~pending_) & (2 * first - 1));
    if (lane_ == 0) {
      barrier_arrive(values ? shared_.value_full((issued_values_ - behind) % Config::kValueStages)
                            : shared_.key_full((issued_keys_ - behind) % Config::kKeyStages));
    }
    pending_ = pending_ & (first - 1) | first;
  }

  const PrefillArgs& args_;
  PrefillShared<Config> shared_;
  const int warp_;  // of those that gather
  const int lane_;
  uint32_t tiles_ = 0;
  uint32_t issued_keys_ = 0;  // blocks
  uint32_t issued_values_ = 0;
  uint32_t pending_ = 1;  // a 1, then for each block that is issued and not handed over a bit: whether it is of V
  // Of the current tile.
  int seqlen_k_ = 0;
  const int32_t* table_ = nullptr;
  int head_kv_ = 0;
};

}  // namespace onepass::hopper
