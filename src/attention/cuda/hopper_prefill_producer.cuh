// The producers of the Hopper prefill kernel: a warp that copies K into shared memory, and one that copies V.
#pragma once

#include "attention/cuda/hopper_prefill_kernel.cuh"

namespace onepass::hopper {

template <typename Config, bool kValues>
class PrefillProducer {
  static constexpr int kStages = kValues ? Config::kValueStages : Config::kKeyStages;
  static constexpr int kPanels = kValues ? Config::kPanelsV : Config::kPanels;

 public:
  __device__ PrefillProducer(const PrefillArgs& args, const CUtensorMap* map, PrefillShared<Config> shared)
      : args_(args), map_(map), shared_(shared), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    if (lane_ == 0) prefetch_tensor_map(map_);
    while (true) {
      barrier_wait(shared_.tile_full(tile_.slot()), tile_.parity());
      const PrefillTile tile = shared_.load_tile(tile_.slot());
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.tile_empty(tile_.slot()));
      tile_.advance();
      if (tile.rows == 0) return;
      seqlen_k_ = tile.seqlen_k;
      row_or_page_ = tile.kv_row;
      head_kv_ = tile.head_kv;
      request_ = tile.request;
      look_up_pages(tile.end_block - 1);
      for (int n = tile.end_block - 1; n >= tile.first_block; --n) {
        if (!kValues && lane_ == 0 && n == min(tile.first_block + 1, tile.end_block - 1) && shared_.rank() == 0) {
          barrier_arrive(shared_.tile_wanted());
        }
        copy(n);
        if ((n * Config::kKeys & args_.window_mask) == 0 && n > tile.first_block) look_up_pages(n - 1);
      }
    }
  }

 private:
  // Gives each lane the id of one of the 32 pages, from a multiple of 32, that block n is in; no block is in more. When
  // each box's id was loaded for its copy, that took 2% of the kernel's time, wherever the load stood: an instruction
  // that goes to memory holds up the consumers. Entries past the sequence's end are not read.
  __device__ void look_up_pages(int n) {
    if (args_.page_table == nullptr) return;
    const int page = (n * Config::kKeys >> args_.page_shift) / 32 * 32 + lane_;
    if (page > (seqlen_k_ - 1) >> args_.page_shift) return;
    row_or_page_ = __ldg(args_.page_table + request_ * args_.page_table_stride + page);
  }
  // How many boxes of block n hold keys.
  __device__ int boxes(int n) const {
    return min(args_.boxes, ((seqlen_k_ - n * Config::kKeys - 1) >> args_.box_shift) + 1);
  }

  __device__ void copy(int n) {
    const int slot = block_.slot();
    const uint32_t full = kValues ? shared_.value_full(slot) : shared_.key_full(slot);
    const uint32_t to = kValues ? shared_.value(slot) : shared_.key(slot);
    barrier_wait(kValues ? shared_.value_empty(slot) : shared_.key_empty(slot), block_.parity() ^ 1);
    if constexpr (Config::kPaired) {
      // Half of the block goes to the other, and half of it comes from there.
      const uint32_t empty = kValues ? shared_.other_value_empty(slot) : shared_.other_key_empty(slot);
      if (lane_ == 0) barrier_arrive_cluster_relaxed(empty + shared_.to_other);
      barrier_wait(empty, block_.parity());
    }
    block_.advance();
    // Rows of V past the sequence's end may hold NaN, which would survive the product with a probability of zero: they
    // are overwritten before the consumers may have the block. The other of a pair may be at the next such block
    // already, in another slot.
    const int valid = seqlen_k_ - n * Config::kKeys;
    const bool whole = !kValues || valid >= Config::kKeys;
    const int raw = Config::kPaired ? slot : 0;
    copy_boxes(n, to, whole ? full : shared_.value_raw(raw));
    if (whole) return;
    barrier_wait(shared_.value_raw(raw), raw_parities_ >> raw & 1);
    raw_parities_ ^= 1u << raw;
    for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll 1
      for (int i = valid * 8 + lane_; i < Config::kKeys * 8; i += 32) {
        store_shared_16(to + panel * Config::kKeys * 128 + i * 16, make_uint4(0, 0, 0, 0));
      }
    }
    fence_async_proxy();
    __syncwarp();
    if (lane_ == 0) barrier_arrive(full);
  }

  // Of a pair, each thread block copies half of the boxes, to both.
  __device__ void copy_boxes(int n, uint32_t to, uint32_t full) const {
    const int first_key = n * Config::kKeys;
    if (args_.page_table == nullptr) {  // one box a panel, of a pair two
      if (lane_ == 0) {
        barrier_arrive_expect(full, Config::kKeys * kPanels * 128);
        const int row = Config::kPaired ? static_cast<int>(shared_.rank()) * (Config::kKeys / 2) : 0;
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          copy_box(to + (panel * Config::kKeys + row) * 128, panel * 64, row_or_page_ + first_key + row, 0, full);
        }
      }
    } else {
      const int box = lane_ / kPanels;  // each lane a box of some rows and one panel
      const int panel = lane_ % kPanels;
      const int row = box * args_.box_rows;
      const int page = __shfl_sync(0xFFFFFFFF, row_or_page_, (first_key + row) >> args_.page_shift);  // modulo 32
      const bool mine = box < boxes(n) && (!Config::kPaired || box % 2 == static_cast<int>(shared_.rank()));
      if (lane_ == 0) barrier_arrive_expect(full, boxes(n) * args_.box_rows * kPanels * 128);
      __syncwarp();
      if (mine) {
        copy_box(to + (panel * Config::kKeys + row) * 128, panel * 64, (first_key + row) & args_.page_mask, page, full);
      }
    }
    __syncwarp();
  }
  __device__ void copy_box(uint32_t to, int column, int row, int page, uint32_t full) const {
    if constexpr (Config::kPaired) {
      copy_box_4d_multicast(to, map_, column, head_kv_, row, page, full, 3, kEvictLast);
    } else {
      copy_box_4d(to, map_, column, head_kv_, row, page, full, kEvictLast);
    }
  }

  const PrefillArgs& args_;
  const CUtensorMap* map_;
  PrefillShared<Config> shared_;
  int lane_;
  RingPlace<Config::kTileSlots> tile_;
  RingPlace<kStages> block_;
  uint32_t raw_parities_ = 0;  // a bit for each slot
  // Of the current tile.
  int seqlen_k_ = 0;
  int head_kv_ = 0;
  int request_ = 0;
  int row_or_page_ = 0;  // contiguous: of the first key; else the id of a page for each lane (registers are scarce)
};

}  // namespace onepass::hopper
