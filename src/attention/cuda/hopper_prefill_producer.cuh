// The producer of the Hopper prefill kernel: one warp that copies Q, K and V into shared memory.
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
      prefetch_tensor_map(&maps_.q);
      prefetch_tensor_map(&maps_.k);
      prefetch_tensor_map(&maps_.v);
    }
    while (true) {
      barrier_wait(shared_.tile_full(place_.slot), place_.parity);
      const PrefillTile tile = shared_.load_tile(place_.slot);
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.tile_empty(place_.slot));
      place_.advance();
      if (tile.rows == 0) return;
      copy_tile(tile);
    }
  }

 private:
  __device__ void copy_tile(const PrefillTile& tile) {
    seqlen_k_ = tile.seqlen_k;
    kv_row_ = tile.kv_row;
    head_kv_ = tile.head_kv;
    table_ = args_.page_table + tile.request * args_.page_table_stride;

    // Page ids are asked for two blocks ahead.
    int n = tile.end_block - 1;
    int pages = page_ids(n);
    int next_pages = n > tile.first_block ? page_ids(n - 1) : 0;
    copy_keys(n, pages);
    copy_queries(tile);
    for (; n >= tile.first_block; --n) {
      const int later_pages = n - 2 >= tile.first_block ? page_ids(n - 2) : 0;
      if (n > tile.first_block) copy_keys(n - 1, next_pages);
      copy_values(n, pages);
      pages = next_pages;
      next_pages = later_pages;
    }
  }

  __device__ void copy_queries(const PrefillTile& tile) {
    const int slot = query_.slot;
    barrier_wait(shared_.query_empty(slot), query_.parity ^ 1);
    if (lane_ == 0) {
      barrier_arrive_expect(shared_.query_full(slot), Config::kQueryBytes);
#pragma unroll
      for (int panel = 0; panel < Config::kPanels; ++panel) {
        copy_box_3d(shared_.query(slot) + panel * Config::kRows * 128, &maps_.q, panel * 64, tile.head, tile.q_row,
                    shared_.query_full(slot), kEvictFirst);
      }
    }
    __syncwarp();
    query_.advance();
  }

  // Lane s: the page of the s-th box of block n. Boxes past the sequence's end are not looked up.
  __device__ int page_ids(int n) const {
    const int key = n * Config::kKeys + lane_ * args_.box_rows;
    if (args_.page_table == nullptr || key >= seqlen_k_ || lane_ >= args_.boxes) return 0;
    return __ldg(table_ + (key >> args_.page_shift));
  }

  template <int kPanelCount>
  __device__ void copy_block(const CUtensorMap* map, int n, int pages, uint32_t to, uint32_t full) {
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
      const int page = __shfl_sync(0xFFFFFFFF, pages, box);
      const int boxes = min(args_.boxes, ((seqlen_k_ - first_key - 1) >> args_.box_shift) + 1);
      if (lane_ == 0) barrier_arrive_expect(full, boxes * args_.box_rows * kPanelCount * 128);
      __syncwarp();
      if (box < boxes) {
        const int row = box * args_.box_rows;
        copy_box_4d(to + (panel * Config::kKeys + row) * 128, map, panel * 64, head_kv_,
                    (first_key + row) & ((1 << args_.page_shift) - 1), page, full, kEvictLast);
      }
    }
    __syncwarp();
  }

  __device__ void copy_keys(int n, int pages) {
    const int slot = key_.slot;
    barrier_wait(shared_.key_empty(slot), key_.parity ^ 1);
    copy_block<Config::kPanels>(&maps_.k, n, pages, shared_.key(slot), shared_.key_full(slot));
    key_.advance();
  }

  // Rows of V past the sequence's end may hold NaN, which would survive the product with a probability of zero.
  __device__ void copy_values(int n, int pages) {
    const int slot = value_.slot;
    barrier_wait(shared_.value_empty(slot), value_.parity ^ 1);
    const int valid = seqlen_k_ - n * Config::kKeys;
    if (valid >= Config::kKeys) {
      copy_block<Config::kPanelsV>(&maps_.v, n, pages, shared_.value(slot), shared_.value_full(slot));
    } else {
      copy_block<Config::kPanelsV>(&maps_.v, n, pages, shared_.value(slot), shared_.value_raw());
      barrier_wait(shared_.value_raw(), raw_parity_);
      raw_parity_ ^= 1;
      for (int panel = 0; panel < Config::kPanelsV; ++panel) {
        const uint32_t to = shared_.value(slot) + panel * Config::kKeys * 128;
        for (int i = valid * 8 + lane_; i < Config::kKeys * 8; i += 32) {
          store_shared_16(to + i * 16, make_uint4(0, 0, 0, 0));
        }
      }
      fence_async_proxy();
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.value_full(slot));
    }
    value_.advance();
  }

  const PrefillArgs& args_;
  const PrefillMaps& maps_;
  PrefillShared<Config> shared_;
  int lane_;
  RingPlace<Config::kTileSlots> place_;
  RingPlace<Config::kQuerySlots> query_;
  RingPlace<Config::kStages> key_;
  RingPlace<Config::kStages> value_;
  uint32_t raw_parity_ = 0;
  // Of the current tile.
  int seqlen_k_ = 0;
  int kv_row_ = 0;
  int head_kv_ = 0;
  const int32_t* table_ = nullptr;
};

}  // namespace onepass::hopper
