// The Hopper prefill kernel: one persistent thread block a multiprocessor, of three warpgroups or four. The first keeps
// the copy engine busy (where rows are gathered, the last copies them); the others own 64 queries each of a tile.
// docs/attention.md draws the schedule.
#pragma once

#include "attention/cuda/hopper_prefill.h"
#include "tensor/cuda/hopper_ptx.cuh"
#include "tensor/cuda/hopper_wgmma.cuh"

namespace onepass::hopper {

// Everything about one instantiation that is known to the compiler.
template <typename T_, int kHeadDim_, int kHeadDimV_, int kKeys_, int kKeyStages_, int kValueStages_, int kQuerySlots_,
          int kOutputPanels_, int kConsumers_ = 2>
struct PrefillConfig {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHeadDimV = kHeadDimV_;
  static constexpr int kKeys = kKeys_;                  // of a block
  static constexpr int kKeyStages = kKeyStages_;        // blocks of K in shared memory
  static constexpr int kValueStages = kValueStages_;    // blocks of V
  static constexpr int kQuerySlots = kQuerySlots_;      // tiles whose queries are in shared memory
  static constexpr int kOutputPanels = kOutputPanels_;  // of 64 columns that a warp's output is staged by

  static constexpr int kConsumers = kConsumers_;  // warpgroups
  static constexpr int kRows = 64 * kConsumers;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  // What a thread has at the launch; what the producers give, the consumers take.
  static constexpr int kRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = ((kConsumers + 1) * kRegisters - kProducerRegisters) / kConsumers / 8 * 8;
  static constexpr int kTileSlots = 3;
  // A warp brings a box every 70 cycles. At head dimension 128 a block of K or V in pages of 8 is 32 boxes, which take
  // as long as the products. A lane brings one box of one panel, so there can be no more than 32 of them.
  static constexpr int kSmallestPage = kHeadDim == 128 || kHeadDim == 192 ? 16 : 8;
  static_assert(kKeys_ / kSmallestPage * (kHeadDim / 64) <= 32);
  static_assert(32 * kSmallestPage % kKeys_ == 0);  // of 32 pages, whose ids are looked up at once
  // Whether there are registers for the next probabilities beside those that a product in flight reads.
  static constexpr bool kOverlapValues = kHeadDim == 128;
  static constexpr int kPanels = kHeadDim / 64;
  static constexpr int kPanelsV = kHeadDimV / 64;
  static constexpr int kQueryBytes = kRows * kHeadDim * 2;
  static constexpr int kKeyBytes = kKeys * kHeadDim * 2;
  static constexpr int kValueBytes = kKeys * kHeadDimV * 2;
  static constexpr int kOutputBytes = 16 * kOutputPanels * 128;  // of a warp

  static constexpr int kTileBytes = 48 + 16 * kConsumers;

  // Shared memory, from a 1024-byte boundary.
  static constexpr int kKeyOffset = kQuerySlots * kQueryBytes;
  static constexpr int kValueOffset = kKeyOffset + kKeyStages * kKeyBytes;
  static constexpr int kOutputOffset = kValueOffset + kValueStages * kValueBytes;
  static constexpr int kTileOffset = kOutputOffset + 4 * kConsumers * kOutputBytes;
  static constexpr int kBarrierOffset = kTileOffset + kTileSlots * kTileBytes;
  static constexpr int kNumBarriers =
      4 * kTileSlots + 2 * kQuerySlots * kConsumers + 3 * (kKeyStages + kValueStages) + kValueStages + 1;
  static constexpr int kSharedBytes = kBarrierOffset + 8 * kNumBarriers + 1024;
  static_assert(kSharedBytes <= 232448);
  static_assert(kPanelsV % kOutputPanels == 0);
  static constexpr bool kPaired = false;
  static constexpr bool kGather = false;
  static constexpr int kGatherWarps = 0;
  static constexpr bool kGatherGroup = false;
  static constexpr bool kSoftcap = false;
};

// The same for pages that the copy engine does not take: see hopper_prefill_gather.cuh.
template <typename Config>
struct Gathering : Config {
  static constexpr bool kGather = true;
  // Each copy by a thread holds up the consumers' warps of its scheduler, some 11 cycles, so they are dealt out evenly
  // to all four schedulers: the warps that gather are a warpgroup of their own. Not where the consumers need its
  // registers.
  static constexpr bool kGatherGroup = Config::kHeadDim < 256;
  static constexpr int kGatherWarps = kGatherGroup ? 4 : 3;
  static constexpr int kThreads = Config::kThreads + (kGatherGroup ? 128 : 0);
  static constexpr int kGatherRegisters = 40;
  static constexpr int kProducerRegisters = kGatherGroup ? 24 : 40;
  static constexpr int kConsumerRegisters = kGatherGroup ? 224 : 232;
};

// The same by pairs of thread blocks, clusters of two, for long requests: a tile has twice as many rows, and each of
// the two copies half of a block of K or V to both. The L2 cache gives half as much, and so takes less power.
template <typename Config>
struct Paired : Config {
  static constexpr bool kPaired = true;
  static constexpr int kRows = 2 * Config::kRows;
  static constexpr int kSmallestPage = 8;
  static_assert(Config::kConsumers == 2 && Config::kKeys / kSmallestPage * Config::kPanels <= 32);
};

// The same with a soft cap, whose exponentials would slow the others down even where they are not computed.
template <typename Config>
struct WithSoftcap : Config {
  static constexpr bool kSoftcap = true;
};

// A tile and one head, as the scheduler hands it to the producer and the consumers.
struct alignas(16) PrefillTile {
  int32_t q_row;
  int32_t rows;  // 0: there are no more tiles
  int32_t position;
  int32_t seqlen_k;
  int32_t head;  // of the results
  int32_t head_kv;
  int32_t first_block;
  int32_t end_block;
  int32_t kv_row;
  int32_t request;
};

// Of a tile, what is a consumer's own: the blocks in which its 64 rows see keys end at end_block (one at least), and
// those of which they see all keys are full_first <= n < full_end.
struct alignas(16) PrefillTilePart {
  int32_t end_block;
  int32_t full_first;
  int32_t full_end;
  int32_t seen_end;  // without chunks: the keys that its first row sees end here or with the sequence; a row later, one
                     // more
};

// A place in a ring of kSize slots and the parity of its round, in one register.
template <int kSize>
class RingPlace {
 public:
  __device__ int slot() const { return place_ < kSize ? place_ : place_ - kSize; }
  __device__ uint32_t parity() const { return place_ < kSize ? 0 : 1; }
  // Of how often it has advanced.
  __device__ uint32_t count_parity() const { return place_ & 1; }
  __device__ void advance() { place_ = place_ == 2 * kSize - 1 ? 0 : place_ + 1; }

 private:
  int place_ = 0;
};

// For what the compiler cannot know to be the same in all threads of a warp: loops over it, and descriptors, then stay
// in uniform registers.
__device__ inline int uniform(int x) { return __shfl_sync(0xFFFFFFFF, x, 0); }

template <typename Config>
struct PrefillShared {
  uint32_t base;
  // Of a pair: how far it is from here to the same place in the other's shared memory.
  uint32_t to_other = 0;
  __device__ PrefillShared other() const { return {base + to_other, 0u - to_other}; }
  // The thread block's place in its pair, read anew wherever it is wanted: registers are scarce.
  __device__ static uint32_t rank() { return Config::kPaired ? cluster_rank() : 0; }

  // Where in a tile are the 64 rows of a consumer? A pair's first has the first and the last, so that on the diagonal,
  // where a block fewer is seen by half of the rows, both have the same to do.
  __device__ static int first_row(int consumer, uint32_t rank = PrefillShared::rank()) {
    if constexpr (!Config::kPaired) return 64 * consumer;
    return rank == 0 ? 192 * consumer : 64 + 64 * consumer;
  }

  // The queries of one consumer.
  __device__ uint32_t query(int slot, int consumer) const {
    return base + (slot * Config::kConsumers + consumer) * (Config::kQueryBytes / Config::kConsumers);
  }
  __device__ uint32_t key(int slot) const { return base + Config::kKeyOffset + slot * Config::kKeyBytes; }
  __device__ uint32_t value(int slot) const { return base + Config::kValueOffset + slot * Config::kValueBytes; }
  // Where a warp of the consumers stages its output.
  __device__ uint32_t output(int warp) const { return base + Config::kOutputOffset + warp * Config::kOutputBytes; }
  __device__ uint32_t tile(int slot) const { return base + Config::kTileOffset + slot * Config::kTileBytes; }

  // Barriers: those that say that a slot is full, then those that say that it is empty.
  static constexpr int kValues = Config::kKeyStages;
  static constexpr int kQueries = kValues + Config::kValueStages;
  static constexpr int kTiles = kQueries + Config::kQuerySlots * Config::kConsumers;
  static constexpr int kEmpty = kTiles + Config::kTileSlots;
  __device__ uint32_t barrier(int i) const { return base + Config::kBarrierOffset + 8 * i; }
  __device__ uint32_t key_full(int slot) const { return barrier(slot); }
  __device__ uint32_t key_empty(int slot) const { return barrier(kEmpty + slot); }
  __device__ uint32_t value_full(int slot) const { return barrier(kValues + slot); }
  __device__ uint32_t value_empty(int slot) const { return barrier(kEmpty + kValues + slot); }
  __device__ uint32_t query_full(int slot, int consumer) const {
    return barrier(kQueries + slot * Config::kConsumers + consumer);
  }
  __device__ uint32_t query_empty(int slot, int consumer) const {
    return barrier(kEmpty + kQueries + slot * Config::kConsumers + consumer);
  }
  __device__ uint32_t tile_full(int slot) const { return barrier(kTiles + slot); }
  __device__ uint32_t tile_empty(int slot) const { return barrier(kEmpty + kTiles + slot); }
  // A block of V that has rows to be zeroed before the consumers may have it.
  __device__ uint32_t value_raw(int slot) const { return barrier(2 * kEmpty + slot); }
  // Of a pair: the other's slot of K or V is empty too; the second may be given a tile; the second has been.
  static constexpr int kPair = 2 * kEmpty + Config::kValueStages;
  __device__ uint32_t other_key_empty(int slot) const { return barrier(kPair + slot); }
  __device__ uint32_t other_value_empty(int slot) const { return barrier(kPair + kValues + slot); }
  __device__ uint32_t other_tile_empty(int slot) const { return barrier(kPair + kQueries + slot); }
  __device__ uint32_t tile_sent(int slot) const { return barrier(kPair + kQueries + Config::kTileSlots + slot); }
  // The copies of K have come to the last two blocks of the tile announced last: it is time for the next. A phase for
  // each tile; of a pair the first's alone.
  __device__ uint32_t tile_wanted() const { return barrier(kPair + kQueries + 2 * Config::kTileSlots); }

  __device__ PrefillTile load_tile(int slot) const {
    const uint4 a = load_shared_16(tile(slot));
    const uint4 b = load_shared_16(tile(slot) + 16);
    const uint4 c = load_shared_16(tile(slot) + 32);
    return {uniform(a.x), uniform(a.y), uniform(a.z), uniform(a.w), uniform(b.x),
            uniform(b.y), uniform(b.z), uniform(b.w), uniform(c.x), uniform(c.y)};
  }
  __device__ uint32_t part_address(int slot, int consumer) const { return tile(slot) + 48 + 16 * consumer; }
  __device__ PrefillTilePart load_part(int slot, int consumer) const {
    const uint4 a = load_shared_16(part_address(slot, consumer));
    return {uniform(a.x), uniform(a.y), uniform(a.z), uniform(a.w)};
  }
  // `this` may be the other of a pair.
  __device__ void store_part(int slot, int consumer, const PrefillTilePart& part) const {
    store(part_address(slot, consumer), make_uint4(part.end_block, part.full_first, part.full_end, part.seen_end));
  }
  __device__ void store_tile(int slot, const PrefillTile& t) const {
    store(tile(slot), make_uint4(t.q_row, t.rows, t.position, t.seqlen_k));
    store(tile(slot) + 16, make_uint4(t.head, t.head_kv, t.first_block, t.end_block));
    store(tile(slot) + 32, make_uint4(t.kv_row, t.request, 0, 0));
  }
  __device__ static void store(uint32_t to, uint4 v) {
    if constexpr (Config::kPaired) {
      store_cluster_16(to, v);
    } else {
      store_shared_16(to, v);
    }
  }
};

}  // namespace onepass::hopper
