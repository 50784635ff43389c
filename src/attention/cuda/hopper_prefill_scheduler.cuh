// The scheduler of the Hopper prefill kernel: one warp that takes tiles off the plan's list, just ahead of those who
// work on them.
#pragma once

#include "attention/cuda/hopper_prefill_kernel.cuh"

namespace onepass::hopper {

template <typename Config>
class PrefillScheduler {
 public:
  __device__ PrefillScheduler(const PrefillArgs& args, const PrefillMaps& maps, PrefillShared<Config> shared)
      : args_(args), maps_(maps), shared_(shared), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    if (shared_.rank() != 0) return follow();
    const int workers = gridDim.x / kBlocks;
    int index = blockIdx.x / kBlocks;
    while (index < args_.plan->num_items * args_.parts) {
      // A tile is taken only when the one before it is within a few blocks of its end. With two in reserve, as many
      // thread blocks still had long ones before them when the others had none left: at causal 4k, head dimension 256,
      // that took 14% of the time, and tiles of too many heads at once kept K and V from the L2 cache.
      if (schedule(index)) barrier_wait(shared_.tile_wanted(), place_.count_parity() ^ 1);
      if (second_) continue;
      const int next = lane_ == 0 ? atomicAdd(&args_.plan->next_item, 1) : 0;
      index = workers + __shfl_sync(0xFFFFFFFF, next, 0);
    }
    announce(PrefillTile{});
    let_next_kernel_start();
    // The last block to come here leaves the counters ready for the next run.
    if (lane_ == 0) {
      __threadfence();
      if (atomicAdd(&args_.plan->finished, 1) == workers - 1) {
        args_.plan->finished = 0;
        args_.plan->next_item = 0;
      }
    }
  }

 private:
  static constexpr bool kPaired = Config::kPaired;
  static constexpr int kBlocks = kPaired ? 2 : 1;  // that work on one tile

  // The second of a pair hands on what the first sends, and copies its own queries.
  __device__ void follow() {
    while (true) {
      announced_ = place_.slot();
      barrier_wait(shared_.tile_empty(announced_), place_.parity() ^ 1);
      if (lane_ == 0) barrier_arrive_cluster_relaxed(shared_.other_tile_empty(announced_) + shared_.to_other);
      barrier_wait_cluster(shared_.tile_sent(announced_), place_.parity());
      place_.advance();
      if (lane_ < Config::kConsumers) barrier_arrive(shared_.tile_full(announced_));
      if (load_shared_16(shared_.tile(announced_)).y == 0) return let_next_kernel_start();
      copy_queries();
    }
  }

  // Which entry, head and part of the keys is the first tile, or the second, of the item called `index`? Indices only
  // grow. False if it has no keys.
  __device__ bool schedule(int index) {
    const int part = index % args_.parts;
    index /= args_.parts;
    while (chunk_ + 1 < args_.plan->num_chunks && index >= args_.plan->chunks[chunk_ + 1].first_item) ++chunk_;
    const PrefillChunk& chunk = args_.plan->chunks[chunk_];
    index -= chunk.first_item;
    const int group = index / (chunk.items * chunk.group_heads);
    index -= group * (chunk.items * chunk.group_heads);
    const int first_head = group * chunk.group_heads;
    const int heads = min(chunk.group_heads, args_.num_heads - first_head);
    const int row = index / heads;
    const PrefillEntry entry = args_.entries[chunk.first_entry + row + (second_ ? chunk.items : 0)];
    second_ = !second_ && row + chunk.items < chunk.entries;
    const int head = first_head + index - row * heads;

    const int first_key = args_.mask.first(entry.position);
    const int end_key = args_.mask.end(entry.position + entry.rows - 1, entry.seqlen_k);
    int first_block = first_key / Config::kKeys;
    int end_block = end_key <= first_key ? first_block : (end_key + Config::kKeys - 1) / Config::kKeys;
    if (args_.parts > 1) {
      const int blocks = end_block - first_block;
      const int parts = min(args_.parts, (blocks + kPrefillPartBlocks - 1) / kPrefillPartBlocks);
      end_block = part < parts ? first_block + blocks * (part + 1) / parts : 0;
      first_block = part < parts ? first_block + blocks * part / parts : 0;
    }
    const int result_head = part * args_.num_heads + head;
    if (end_block <= first_block) {
      write_empty(entry, result_head);
      return false;
    }
    announce({.q_row = entry.q_row,
              .rows = entry.rows,
              .position = entry.position,
              .seqlen_k = entry.seqlen_k,
              .head = result_head,
              .head_kv = head / args_.heads_per_kv,
              .first_block = first_block,
              .end_block = end_block,
              .kv_row = entry.kv_row,
              .request = entry.request});
    copy_queries();
    return true;
  }

  __device__ void announce(const PrefillTile& tile) {
    announced_ = place_.slot();
    barrier_wait(shared_.tile_empty(place_.slot()), place_.parity() ^ 1);
    if constexpr (kPaired) barrier_wait(shared_.other_tile_empty(place_.slot()), place_.parity());
    // Lanes of the pair's second thread block write to it.
    const int block = kPaired ? lane_ / Config::kConsumers : 0;
    const int consumer = kPaired ? lane_ % Config::kConsumers : lane_;
    const PrefillShared<Config> to = kPaired && block == 1 ? shared_.other() : shared_;
    if (consumer == 0 && block < kBlocks) to.store_tile(place_.slot(), tile);
    __syncwarp();
    if (consumer < Config::kConsumers && block < kBlocks) {
      store_part(to, consumer, block);
      if (kPaired && block == 1) {
        barrier_arrive_cluster(to.tile_sent(place_.slot()));
      } else {
        barrier_arrive(shared_.tile_full(place_.slot()));
      }
    }
    place_.advance();
  }

  // Worked out here, for the consumers have no time for it.
  __device__ void store_part(const PrefillShared<Config>& to, int consumer, uint32_t rank) const {
    const uint4 rows = load_shared_16(shared_.tile(place_.slot()));  // q_row, rows, position, seqlen_k
    const uint4 blocks = load_shared_16(shared_.tile(place_.slot()) + 16);
    const int first_row = static_cast<int>(rows.z) + to.first_row(consumer, rank);
    const auto seqlen_k = static_cast<int>(rows.w);
    const int end_key = args_.mask.end(first_row + 63, seqlen_k);
    PrefillTilePart part;
    part.end_block = min(max((end_key + Config::kKeys - 1) / Config::kKeys, static_cast<int>(blocks.z) + 1),
                         static_cast<int>(blocks.w));
    part.full_first = (args_.mask.first(first_row + 63) + Config::kKeys - 1) / Config::kKeys;
    part.full_end = args_.mask.end(first_row, seqlen_k) / Config::kKeys;
    part.seen_end = args_.mask.window_right < 0 ? seqlen_k : first_row + args_.mask.window_right + 1;
    to.store_part(place_.slot(), consumer, part);
  }

  // Of the tile announced last, which stays where it is until its output has been written.
  __device__ void copy_queries() {
    // Each consumer's as soon as it has done with those before.
#pragma unroll 1
    for (int consumer = 0; consumer < Config::kConsumers; ++consumer) {
      barrier_wait(shared_.query_empty(query_.slot(), consumer), query_.parity() ^ 1);
      if (lane_ == 0) {
        const uint32_t full = shared_.query_full(query_.slot(), consumer);
        const int q_row = static_cast<int>(load_shared_16(shared_.tile(announced_)).x);
        const int head = static_cast<int>(load_shared_16(shared_.tile(announced_) + 16).x) % args_.num_heads;
        barrier_arrive_expect(full, Config::kQueryBytes / Config::kConsumers);
#pragma unroll
        for (int panel = 0; panel < Config::kPanels; ++panel) {
          copy_box_3d(shared_.query(query_.slot(), consumer) + panel * 64 * 128, &maps_.q, panel * 64, head,
                      q_row + shared_.first_row(consumer), full, kEvictFirst);
        }
      }
      __syncwarp();
    }
    query_.advance();
  }

  // A tile whose queries see no key.
  __device__ void write_empty(const PrefillEntry& entry, int head) const {
#pragma unroll 1
    for (int row = 0; row < entry.rows; ++row) {
      if (args_.part_out == nullptr) {  // else the output of a part that is empty is not read
        typename Config::T* to = static_cast<typename Config::T*>(args_.out) +
                                 (entry.q_row + row) * args_.out_row_stride + head * args_.out_head_stride;
        if (lane_ < Config::kHeadDimV / 8) reinterpret_cast<uint4*>(to)[lane_] = make_uint4(0, 0, 0, 0);
      }
      if (args_.softmax_lse != nullptr && lane_ == 0) {
        args_.softmax_lse[static_cast<int64_t>(head) * args_.total_q + entry.q_row + row] = -INFINITY;
      }
    }
  }

  const PrefillArgs& args_;
  const PrefillMaps& maps_;
  PrefillShared<Config> shared_;
  int lane_;
  RingPlace<Config::kTileSlots> place_;
  RingPlace<Config::kQuerySlots> query_;
  int announced_ = 0;
  int chunk_ = 0;        // of the tile last found
  bool second_ = false;  // whether an item's second tile is to come
};

}  // namespace onepass::hopper
