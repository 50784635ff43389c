// The producer of the Hopper prefill kernel: one warp that takes tiles and copies Q, K and V into shared memory.
#pragma once

#include "attention/cuda/hopper_prefill_kernel.cuh"

namespace onepass::hopper {

template <typename Config>
class PrefillProducer {
 public:
  __device__ PrefillProducer(const PrefillArgs& args, const PrefillMaps& maps, PrefillShared<Config> shared)
      : args_(args), maps_(maps), shared_(shared), lane_(threadIdx.x % 32) {}

  // The index of the next tile but one, and the entry of the next, are on their way while a tile is copied.
  __device__ void run() {
    num_tiles_ = args_.plan->num_tiles;
    num_chunks_ = args_.plan->num_chunks;
    chunk_ = args_.plan->chunks[0];
    int index = blockIdx.x;
    int next = take_index();
    Found found = find(index);
    while (index < num_tiles_) {
      const int later = take_index();
      next = gridDim.x + __shfl_sync(0xFFFFFFFF, next, 0);
      const Found next_found = find(next);
      load_tile(found);
      found = next_found;
      index = next;
      next = later;
    }
    announce(PrefillTile{}, 0);
    // The last block to come here leaves the counters ready for the next run.
    if (lane_ == 0) {
      __threadfence();
      if (atomicAdd(&args_.plan->finished, 1) == static_cast<int>(gridDim.x) - 1) {
        args_.plan->finished = 0;
        args_.plan->next_tile = 0;
      }
    }
  }

 private:
  struct Found {
    PrefillEntry entry;
    int head;
  };

  __device__ int take_index() const { return lane_ == 0 ? atomicAdd(&args_.plan->next_tile, 1) : 0; }

  // Which entry and head is the tile called `index`? Indices only grow.
  __device__ Found find(int index) {
    if (index >= num_tiles_) return Found{};
    while (next_chunk_ < num_chunks_) {
      const PrefillChunk next = args_.plan->chunks[next_chunk_];
      if (index < next.first_tile) break;
      chunk_ = next;
      ++next_chunk_;
    }
    index -= chunk_.first_tile;
    const int group = index / (chunk_.entries * chunk_.group_heads);
    index -= group * (chunk_.entries * chunk_.group_heads);
    const int first_head = group * chunk_.group_heads;
    const int heads = min(chunk_.group_heads, args_.num_heads - first_head);
    const int row = index / heads;
    return {args_.entries[chunk_.first_entry + row], first_head + index - row * heads};
  }

  __device__ void load_tile(const Found& found) {
    const PrefillEntry& entry = found.entry;
    const int head = found.head;
    const int first_key = args_.mask.first(entry.position);
    const int end_key = args_.mask.end(entry.position + entry.rows - 1, entry.seqlen_k);
    if (end_key <= first_key) return write_empty(entry, head);
    const int first_block = first_key / Config::kKeys;
    const int end_block = (end_key + Config::kKeys - 1) / Config::kKeys;
    seqlen_k_ = entry.seqlen_k;
    kv_row_ = entry.kv_row;
    head_kv_ = head / args_.heads_per_kv;
    table_ = args_.page_table + entry.request * args_.page_table_stride;

    // Page ids are asked for two blocks ahead.
    int n = end_block - 1;
    int pages = page_ids(n);
    int next_pages = n > first_block ? page_ids(n - 1) : 0;
    copy_keys(n, pages);
    announce(PrefillTile{entry.q_row, entry.rows, entry.position, entry.seqlen_k, head, first_block, end_block, 0},
             Config::kQueryBytes);
    for (; n >= first_block; --n) {
      const int later_pages = n - 2 >= first_block ? page_ids(n - 2) : 0;
      if (n > first_block) copy_keys(n - 1, next_pages);
      copy_values(n, pages);
      pages = next_pages;
      next_pages = later_pages;
    }
  }

  // Hands a tile to the consumers, with its queries if there are any.
  __device__ void announce(const PrefillTile& tile, int bytes) {
    const int slot = query_.slot;
    barrier_wait(shared_.query_empty(slot), query_.parity ^ 1);
    if (lane_ == 0) {
      const uint32_t to = shared_.tile(slot);
      store_shared_16(to, make_uint4(tile.q_row, tile.rows, tile.position, tile.seqlen_k));
      store_shared_16(to + 16, make_uint4(tile.head, tile.first_block, tile.end_block, 0));
      if (bytes == 0) {
        barrier_arrive(shared_.query_full(slot));
      } else {
        barrier_arrive_expect(shared_.query_full(slot), bytes);
        for (int panel = 0; panel < Config::kPanels; ++panel) {
          copy_box_3d(shared_.query(slot) + panel * Config::kRows * 128, &maps_.q, panel * 64, tile.head, tile.q_row,
                      shared_.query_full(slot), kEvictFirst);
        }
      }
    }
    __syncwarp();
    query_.advance();
  }

  // Lane s: the page of the s-th box of block n. Boxes past the sequence's end are not looked up.
  __device__ int page_ids(int n) const {
    const int key = n * Config::kKeys + lane_ * args_.box_rows;
    if (args_.page_table == nullptr || key >= seqlen_k_ || lane_ * args_.box_rows >= Config::kKeys) return 0;
    return __ldg(table_ + (key >> args_.page_shift));
  }

  template <int kPanelCount>
  __device__ void copy_block(const CUtensorMap* map, int n, int pages, uint32_t to, uint32_t full) {
    const int box = lane_ / kPanelCount;  // lane by lane: a box of some rows and one panel
    const int panel = lane_ % kPanelCount;
    const int page = __shfl_sync(0xFFFFFFFF, pages, box);
    const int first_key = n * Config::kKeys;
    const int boxes =
        min(Config::kKeys / args_.box_rows, (seqlen_k_ - first_key + args_.box_rows - 1) / args_.box_rows);
    if (lane_ == 0) barrier_arrive_expect(full, boxes * args_.box_rows * kPanelCount * 128);
    __syncwarp();
    if (box < boxes) {
      const int key = first_key + box * args_.box_rows;
      const int row = args_.page_table == nullptr ? kv_row_ + key : key & ((1 << args_.page_shift) - 1);
      copy_box_4d(to + (panel * Config::kKeys + box * args_.box_rows) * 128, map, panel * 64, head_kv_, row, page, full,
                  kEvictLast);
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
        for (int i = valid * 8 + lane_; i < Config::kKeys * 8; i += 32)
          store_shared_16(to + i * 16, make_uint4(0, 0, 0, 0));
      }
      fence_async_proxy();
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.value_full(slot));
    }
    value_.advance();
  }

  // A tile whose queries see no key.
  __device__ void write_empty(const PrefillEntry& entry, int head) const {
    for (int row = 0; row < entry.rows; ++row) {
      typename Config::T* to = static_cast<typename Config::T*>(args_.out) +
                               (entry.q_row + row) * args_.out_row_stride + head * args_.out_head_stride;
      if (lane_ < Config::kHeadDimV / 8) reinterpret_cast<uint4*>(to)[lane_] = make_uint4(0, 0, 0, 0);
      if (args_.softmax_lse != nullptr && lane_ == 0) {
        args_.softmax_lse[static_cast<int64_t>(head) * args_.total_q + entry.q_row + row] = -INFINITY;
      }
    }
  }

  const PrefillArgs& args_;
  const PrefillMaps& maps_;
  PrefillShared<Config> shared_;
  int lane_;
  RingPlace<Config::kQuerySlots> query_;
  RingPlace<Config::kStages> key_;
  RingPlace<Config::kStages> value_;
  uint32_t raw_parity_ = 0;
  int num_tiles_ = 0;
  int num_chunks_ = 0;
  int next_chunk_ = 1;
  PrefillChunk chunk_;  // of the tile last found
  // Of the current tile.
  int seqlen_k_ = 0;
  int kv_row_ = 0;
  int head_kv_ = 0;
  const int32_t* table_ = nullptr;
};

}  // namespace onepass::hopper
