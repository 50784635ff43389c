// The ring in shared memory that weights, keys and values come through: a warp fills it, as far ahead as it has room,
// and the warps that compute empty it, all of them every slot.
#pragma once

#include "models/cuda/layer_stack_block.cuh"

namespace onepass::layer_stack {

struct RingPosition {
  int slot = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void advance(int slots) {
    if (++slot == slots) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// Of a warp that computes.
class RingReader {
 public:
  __device__ __forceinline__ explicit RingReader(const Block& block) : block_(block) {}

  // A slot's address, once it is full: the oldest that has not been released, or the one after it.
  __device__ __forceinline__ uint32_t wait(bool for_next = false) const {
    RingPosition at = oldest_;
    if (for_next) at.advance(block_.args.p.plan.ring_slots);
    hopper::barrier_wait(block_.full(at.slot), at.phase);
    return block_.shared + block_.args.shared.ring + at.slot * kSlotBytes;
  }
  // Has no more use for the oldest.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) hopper::barrier_arrive(block_.empty(oldest_.slot));
    oldest_.advance(block_.args.p.plan.ring_slots);
  }
  // Has none at all; but whoever gave a slot back before it is full could be a whole ring ahead of the others.
  __device__ __forceinline__ void skip() {
    wait();
    release();
  }

 private:
  const Block& block_;
  RingPosition oldest_;
};

__device__ inline void copy_bulk(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier,
                                 uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// The warp that copies.
class RingWriter {
 public:
  __device__ __forceinline__ explicit RingWriter(const Block& block) : block_(block), lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void write_norm(const float* norm, const StackLayer& layer) {
    const StackShape& shape = block_.args.p.shape;
    const bool has_q = layer.q_norm != nullptr, has_k = layer.k_norm != nullptr;
    const uint32_t head_bytes = shape.head_dim * 4, norm_bytes = shape.hidden_size * 4;
    const uint32_t to = begin(norm_bytes + (has_q + has_k) * head_bytes);
    if (lane_ == 0) {
      copy_bulk(to, norm, norm_bytes, block_.full(at_.slot), hopper::kEvictNormal);
      if (has_q) copy_bulk(to + norm_bytes, layer.q_norm, head_bytes, block_.full(at_.slot), hopper::kEvictNormal);
      if (has_k)
        copy_bulk(to + norm_bytes + head_bytes, layer.k_norm, head_bytes, block_.full(at_.slot), hopper::kEvictNormal);
    }
    at_.advance(block_.args.p.plan.ring_slots);
  }

  __device__ __forceinline__ void write_product(int number, const void* weights) {
    const Product& product = block_.product(number);
    const int count = block_.tiles_of(number), first = block_.index() * product.of_block;
    const int64_t row_bytes = int64_t{product.cols} * 2;
    // Gated: 4 gates, and the 4 rows that they let through.
    const int tile_rows = product.gated ? kTileRows / 2 : kTileRows;
    const int row = first * tile_rows + (product.gated ? lane_ % 4 + (lane_ >= 4 ? product.rows / 2 : 0) : lane_);
    const char* tile = static_cast<const char*>(weights) + row * row_bytes;
#pragma unroll 1
    for (int i = 0; i < count; ++i, tile += tile_rows * row_bytes) {
      const char* from = tile;
#pragma unroll 1
      for (int unit = 0; unit < product.units; ++unit) {
        const uint32_t bytes = product.chunks_of(unit) * kChunk * 2;
        const uint32_t to = begin(kTileRows * bytes);
        if (lane_ < kTileRows)
          copy_bulk(to + lane_ * (bytes + kPadding), from, bytes, block_.full(at_.slot), hopper::kEvictFirst);
        from += bytes;
        at_.advance(block_.args.p.plan.ring_slots);
      }
    }
  }

  // Keys and values of this block's share, 64 keys of both in turn; what lies beyond the last key in its box comes
  // along.
  __device__ __forceinline__ void write_keys(const StackLayer& layer) {
    const StackParams& p = block_.args.p;
    const ItemList& list = *block_.items;
    const int window_left = static_cast<int>(layer.window_left);
    if (list.window_left != window_left) {
      __syncwarp();
      if (lane_ == 0) list_items(block_, window_left);
      __syncwarp();
    }
    const int box_keys = block_.args.box_keys, panels = p.shape.head_dim / 64;
    const int box = lane_ / panels, panel = lane_ % panels;
#pragma unroll 1
    for (int i = 0; i < list.count; ++i) {
      const AttentionItem& item = list.items[i];
      const int* const pages = p.page_table + item.row * p.page_table_stride;
#pragma unroll 1
      for (int block = item.first_block; block < item.end_block; ++block) {
        const int first = block * kKeys, left = item.high - first < kKeys ? item.high - first : kKeys;
        const int boxes = (left + box_keys - 1) / box_keys;
        const int key = first + box * box_keys;
        int row = 0;
        if (box < boxes) {
          const int page = key / p.shape.page_size;
          row = __ldcg(pages + page) * p.shape.page_size + key - page * p.shape.page_size;
        }
        for (const void* const map : {layer.k_map, layer.v_map}) {
          const uint32_t to = begin(boxes * box_keys * p.shape.head_dim * 2);
          if (box < boxes) {
            hopper::copy_box_3d(to + panel * kPanelBytes + box * box_keys * 128, static_cast<const CUtensorMap*>(map),
                                panel * 64, list.head, row, block_.full(at_.slot), hopper::kEvictNormal);
          }
          at_.advance(p.plan.ring_slots);
        }
      }
    }
  }

 private:
  // The address of the next slot, which is empty and waits for `bytes`.
  __device__ __forceinline__ uint32_t begin(uint32_t bytes) {
    hopper::barrier_wait(block_.empty(at_.slot), at_.phase ^ 1);
    if (lane_ == 0) hopper::barrier_arrive_expect(block_.full(at_.slot), bytes);
    __syncwarp();
    return block_.shared + block_.args.shared.ring + at_.slot * kSlotBytes;
  }

  const Block& block_;
  const int lane_;
  RingPosition at_;  // of the next slot
};

}  // namespace onepass::layer_stack
