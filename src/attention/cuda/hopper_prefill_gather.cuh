// The producers of the Hopper prefill kernel for pages that the copy engine would bring in too many small boxes, or
// that blocks of keys cannot be cut into: warps that gather rows by asynchronous copies of 16 bytes.
#pragma once

#include <cstddef>

#include "attention/cuda/hopper_prefill_kernel.cuh"

namespace onepass::hopper {

// Copies K and V row by row into the layout that a tensor map makes. What copies of threads have written is not what
// the tensor cores read until somebody has fenced, which the consumers have no time for: a warp hands over its rows of
// a block when it has begun to copy those of the next, which never waits for the consumers to have had this one.
template <typename Config>
class PrefillGatherer {
  static constexpr int kKeys = Config::kKeys;
  static constexpr int kWarps = Config::kGatherWarps;
  static constexpr int kGroups = kKeys / 32;  // of rows, each copied by one warp
  static_assert(kGroups <= kWarps);
  static constexpr bool kFixed = kGroups == kWarps;  // a warp has the same rows of every block
  static constexpr int kAbreast = 4;                 // copies of a lane whose addresses are made first

 public:
  __device__ PrefillGatherer(const PrefillArgs& args, PrefillShared<Config> shared, int warp)
      : args_(args), shared_(shared), warp_(warp), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    while (true) {
      barrier_wait(shared_.tile_full(tile_.slot()), tile_.parity());
      // A word at a time: all of it at once takes too many registers.
      const uint32_t tile = shared_.tile(tile_.slot());
      const int rows = uniform(load_shared_4(tile + offsetof(PrefillTile, rows)));
      seqlen_k_ = uniform(load_shared_4(tile + offsetof(PrefillTile, seqlen_k)));
      const int first_block = uniform(load_shared_4(tile + offsetof(PrefillTile, first_block)));
      const int end_block = uniform(load_shared_4(tile + offsetof(PrefillTile, end_block)));
      head_kv_ = uniform(load_shared_4(tile + offsetof(PrefillTile, head_kv)));
      table_row_ = uniform(load_shared_4(tile + offsetof(PrefillTile, request))) *
                   static_cast<uint32_t>(args_.page_table_stride);
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.tile_empty(tile_.slot()));
      tile_.advance();
      if (rows == 0) break;
      // In the order in which the consumers ask for blocks: keys are a block ahead of values.
      if constexpr (kFixed) {
        const int key = 32 * warp_ + lane_;
        int page = page_of((end_block - 1) * kKeys + key);
        uint32_t value_row = 0;
        for (int n = end_block - 1; n >= first_block; --n) {
          want_next_tile(n, first_block, end_block);
          const uint32_t key_row = row_at(args_.k_rows, n * kKeys + key, page);
          const uint32_t next_value_row = row_at(args_.v_rows, n * kKeys + key, page);
          // The next block's page ids come while this block is copied.
          if (n > first_block) page = page_of((n - 1) * kKeys + key);
          copy<false>(n, warp_, key_row);
          if (n + 1 < end_block) copy<true>(n + 1, warp_, value_row);
          value_row = next_value_row;
        }
        copy<true>(first_block, warp_, value_row);
      } else {
        for (int n = end_block - 1; n >= first_block; --n) {
          want_next_tile(n, first_block, end_block);
          deal<false>(n);
          if (n + 1 < end_block) deal<true>(n + 1);
        }
        deal<true>(first_block);
      }
    }
    copies_wait<0>();
    hand_over();
  }

 private:
  // The next tile is looked for when this one's last block but one is asked for.
  __device__ __forceinline__ void want_next_tile(int block, int first_block, int end_block) {
    if (warp_ == 0 && lane_ == 0 && block == min(first_block + 1, end_block - 1)) {
      barrier_arrive(shared_.tile_wanted());
    }
  }

  static constexpr uint32_t kNoRow = ~0u;

  // Where the page id of a key is found. Not to be read for keys past the sequence's end.
  __device__ const int32_t* page_id(int key) const {
    return args_.page_table + (table_row_ + static_cast<uint32_t>(divide(key, args_.page_size)));
  }

  // The page of a key, -1 past the sequence's end.
  __device__ int page_of(int key) const { return key < seqlen_k_ ? __ldg(page_id(key)) : -1; }
  // Where the head's row of a key in this page is, in pieces of 16 bytes.
  __device__ uint32_t row_at(const PrefillRows& rows, int key, int page) const {
    if (page < 0) return kNoRow;
    const int in_page = key - divide(key, args_.page_size) * static_cast<int>(args_.page_size.divisor);
    return page * rows.page_stride + in_page * rows.row_stride + head_kv_ * rows.head_stride;
  }

  // Groups are dealt out in turns over all blocks.
  template <bool kValues>
  __device__ void deal(int n) {
    const PrefillRows& rows = kValues ? args_.v_rows : args_.k_rows;
    const int group = (warp_ + (kValues ? dealt_values_++ : dealt_keys_++) * (kWarps - kGroups % kWarps)) % kWarps;
    const int key = n * kKeys + 32 * group + lane_;
    copy<kValues>(n, group, group < kGroups ? row_at(rows, key, page_of(key)) : 0);
  }

  // A group of rows, if there are so many, of block n of K or V.
  template <bool kValues>
  __device__ void copy(int n, int group, uint32_t rows) {
    const int slot = kValues ? value_.slot() : key_.slot();
    barrier_wait(kValues ? shared_.value_empty(slot) : shared_.key_empty(slot),
                 (kValues ? value_.parity() : key_.parity()) ^ 1);
    if (kFixed || group < kGroups) {
      const uint32_t to = (kValues ? shared_.value(slot) : shared_.key(slot)) + 32 * group * 128;
      copy_group<kValues>(to, rows, (n + 1) * kKeys <= seqlen_k_);
    }
    copies_commit();
    copies_wait<1>();
    hand_over();
    copied_ = kValues ? shared_.value_full(slot) : shared_.key_full(slot);
    if constexpr (kValues) {
      value_.advance();
    } else {
      key_.advance();
    }
  }

  // The rows of the block before, which have landed.
  __device__ void hand_over() const {
    fence_async_proxy();
    __syncwarp();
    if (copied_ != 0 && lane_ == 0) barrier_arrive(copied_);
  }

  // 32 rows, each found by one lane.
  template <bool kValues>
  __device__ void copy_group(uint32_t to, uint32_t rows, bool whole) const {
    // Eight lanes copy 128 bytes of a row, one of eight rows after the other.
    const uint32_t at = to + lane_ / 8 * 1024 + lane_ % 8 * 16;
    const char* data = static_cast<const char*>((kValues ? args_.v_rows : args_.k_rows).data) + lane_ % 8 * 16;
    asm volatile("" : "+l"(data));  // a row then costs one multiplication
    if (whole) {
      copy_rows<kValues, true>(at, data, rows);
    } else {
      copy_rows<kValues, false>(at, data, rows);
    }
  }
  template <bool kValues, bool kWhole>
  __device__ void copy_rows(uint32_t to, const char* data, uint32_t rows) const {
#pragma unroll
    for (int j = 0; j < 8; j += kAbreast) {
      uint32_t row[kAbreast];
      const char* from[kAbreast];
#pragma unroll
      for (int i = 0; i < kAbreast; ++i) {
        row[i] = __shfl_sync(0xFFFFFFFF, rows, j + i, 8);
        from[i] = data + uint64_t{row[i]} * 16;
      }
      if constexpr (kWhole) {
#pragma unroll
        for (int i = 0; i < kAbreast; ++i) asm volatile("" : "+l"(from[i]));
      }
#pragma unroll
      for (int i = 0; i < kAbreast; ++i) {
        const uint32_t at = to ^ ((j + i) * (128 + 16));  // swizzled
#pragma unroll
        for (int panel = 0; panel < (kValues ? Config::kPanelsV : Config::kPanels); ++panel) {
          if constexpr (kWhole) {
            constexpr int kRowBytes = 2 * (kValues ? Config::kHeadDimV : Config::kHeadDim);
            copy_16<(kRowBytes % 256 == 0 ? 256 : 128)>(at + panel * kKeys * 128, from[i] + panel * 128);
          } else {
            copy_16_or_zeros(at + panel * kKeys * 128, from[i] + panel * 128, row[i] != kNoRow);
          }
        }
      }
    }
  }

  const PrefillArgs& args_;
  PrefillShared<Config> shared_;
  const int warp_;  // of those that gather
  const int lane_;
  RingPlace<Config::kTileSlots> tile_;
  RingPlace<Config::kKeyStages> key_;
  RingPlace<Config::kValueStages> value_;
  uint32_t copied_ = 0;      // the barrier of the block copied last; 0: of none yet
  uint32_t dealt_keys_ = 0;  // blocks
  uint32_t dealt_values_ = 0;
  // Of the current tile.
  int seqlen_k_ = 0;
  uint32_t table_row_ = 0;  // of the page table's entries
  int head_kv_ = 0;
};

}  // namespace onepass::hopper
