// The producer of the Hopper prefill kernel: one warp that copies K and V into shared memory.
#pragma once

#include "attention/cuda/hopper_prefill_kernel.cuh"

namespace onepass::hopper {

template <typename Config>
class PrefillProducer {
 public:
  __device__ PrefillProducer(const PrefillArgs& args, const PrefillMaps& maps, PrefillShared<Config> shared)
      : args_(args), maps_(maps), shared_(shared), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    if (lane_ == 0) {
      prefetch_tensor_map(&maps_.k);
      prefetch_tensor_map(&maps_.v);
    }
    for (uint32_t count = 0;; ++count) {
      const int slot = count % Config::kTileSlots;
      barrier_wait(shared_.tile_full(slot), count / Config::kTileSlots % 2);
      const PrefillTile tile = shared_.load_tile(slot);
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.tile_empty(slot));
      if (tile.rows == 0) return;
      copy_tile(tile);
    }
  }

 private:
  __device__ void copy_tile(const PrefillTile& tile) {
    seqlen_k_ = tile.seqlen_k;
    kv_row_ = tile.kv_row;
    head_kv_ = tile.head_kv;
    request_ = tile.request;
    // The keys of a block, then the values of the block before it.
#pragma unroll 1
    for (int n = tile.end_block - 1; n >= tile.first_block - 1; --n) {
      const bool keys = n >= tile.first_block;
      if (keys) copy_keys(n);
      if (n < tile.end_block - 1) copy_values(n + 1, keys ? 2 : 1);
    }
  }

  // Where the page of the s-th box of block n is found. Not to be read for boxes past the sequence's end.
  __device__ const int32_t* page_id(int n, int box) const {
    return args_.page_table + request_ * args_.page_table_stride +
           ((n * Config::kKeys + box * args_.box_rows) >> args_.page_shift);
  }
  // How many boxes of block n hold keys.
  __device__ int boxes(int n) const {
    return min(args_.boxes, ((seqlen_k_ - n * Config::kKeys - 1) >> args_.box_shift) + 1);
  }

  template <int kPanelCount>
  __device__ void copy_block(const CUtensorMap* map, int n, uint32_t to, uint32_t full) {
    const int first_key = n * Config::kKeys;
    if (args_.page_table == nullptr) {  // one box a panel
      if (lane_ == 0) {
        barrier_arrive_expect(full, Config::kKeys * kPanelCount * 128);
#pragma unroll
        for (int panel = 0; panel < kPanelCount; ++panel) {
          copy_box_4d(to + panel * Config::kKeys * 128, map, panel * 64, head_kv_, kv_row_ + first_key, 0, full,
                      kEvictLast);
        }
      }
    } else {
      const int box = lane_ / kPanelCount;  // each lane a box of some rows and one panel
      const int panel = lane_ % kPanelCount;
      const bool mine = box < boxes(n);
      const int page = mine ? __ldg(page_id(n, box)) : 0;
      if (lane_ == 0) barrier_arrive_expect(full, boxes(n) * args_.box_rows * kPanelCount * 128);
      __syncwarp();
      if (mine) {
        const int row = box * args_.box_rows;
        copy_box_4d(to + (panel * Config::kKeys + row) * 128, map, panel * 64, head_kv_,
                    (first_key + row) & ((1 << args_.page_shift) - 1), page, full, kEvictLast);
      }
    }
    __syncwarp();
  }

  __device__ void copy_keys(int n) {
    const int slot = blocks_ % Config::kKeyStages;
    // Blocks go from the last to the first: the next block's page ids will be in the L1 cache.
    if (args_.page_table != nullptr && n > 0 && lane_ < args_.boxes) prefetch_l1(page_id(n - 1, lane_));
    barrier_wait(shared_.key_empty(slot), (blocks_ / Config::kKeyStages + 1) % 2);
    copy_block<Config::kPanels>(&maps_.k, n, shared_.key(slot), shared_.key_full(slot));
    ++blocks_;
  }

  // Rows of V past the sequence's end may hold NaN, which would survive the product with a probability of zero.
  // `ago`: the block's keys were the last copied, or the last but one.
  __device__ void copy_values(int n, uint32_t ago) {
    const uint32_t count = blocks_ - ago;
    const int slot = count % Config::kValueStages;
    barrier_wait(shared_.value_empty(slot), (count / Config::kValueStages + 1) % 2);
    const int valid = seqlen_k_ - n * Config::kKeys;
    if (valid >= Config::kKeys) {
      copy_block<Config::kPanelsV>(&maps_.v, n, shared_.value(slot), shared_.value_full(slot));
    } else {
      copy_block<Config::kPanelsV>(&maps_.v, n, shared_.value(slot), shared_.value_raw());
      barrier_wait(shared_.value_raw(), raw_parity_);
      raw_parity_ ^= 1;
      for (int panel = 0; panel < Config::kPanelsV; ++panel) {
        const uint32_t to = shared_.value(slot) + panel * Config::kKeys * 128;
#pragma unroll 1
        for (int i = valid * 8 + lane_; i < Config::kKeys * 8; i += 32) {
          store_shared_16(to + i * 16, make_uint4(0, 0, 0, 0));
        }
      }
      fence_async_proxy();
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.value_full(slot));
    }
  }

  const PrefillArgs& args_;
  const PrefillMaps& maps_;
  PrefillShared<Config> shared_;
  int lane_;
  uint32_t blocks_ = 0;  // of K copied so far
  uint32_t raw_parity_ = 0;
  // Of the current tile.
  int seqlen_k_ = 0;
  int kv_row_ = 0;
  int head_kv_ = 0;
  int request_ = 0;
};

}  // namespace onepass::hopper
