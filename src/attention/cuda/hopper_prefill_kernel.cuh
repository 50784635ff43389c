// The Hopper prefill kernel: one persistent thread block a multiprocessor, of three warpgroups. The first keeps the
// copy engine busy; the others own 64 queries each of a tile of 128. docs/attention.md draws the schedule.
#pragma once

#include "attention/cuda/hopper_prefill.h"
#include "attention/cuda/hopper_ptx.cuh"
#include "attention/cuda/hopper_wgmma.cuh"

namespace onepass::hopper {

// Everything about one instantiation that is known to the compiler.
template <typename T_, int kHeadDim_, int kHeadDimV_, int kKeys_, int kStages_, int kQuerySlots_, bool kTurns_ = true>
struct PrefillConfig {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHeadDimV = kHeadDimV_;
  static constexpr int kKeys = kKeys_;      // of a block
  static constexpr int kStages = kStages_;  // blocks of K, and of V, in shared memory
  // With two slots the next tile's queries are there before this tile's end, and its first product overlaps the
  // epilogue.
  static constexpr int kQuerySlots = kQuerySlots_;

  static constexpr bool kTurns = kTurns_;

  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kRows = 64 * kConsumers;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  // 168 a thread at the launch; what the producer gives, the consumers take.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;
  static constexpr int kPanels = kHeadDim / 64;
  static constexpr int kPanelsV = kHeadDimV / 64;
  static constexpr int kQueryBytes = kRows * kHeadDim * 2;
  static constexpr int kKeyBytes = kKeys * kHeadDim * 2;
  static constexpr int kValueBytes = kKeys * kHeadDimV * 2;

  // Shared memory, from a 1024-byte boundary.
  static constexpr int kKeyOffset = kQuerySlots * kQueryBytes;
  static constexpr int kValueOffset = kKeyOffset + kStages * kKeyBytes;
  static constexpr int kTileOffset = kValueOffset + kStages * kValueBytes;
  static constexpr int kBarrierOffset = kTileOffset + 2 * 32;
  static constexpr int kNumBarriers = 2 * kQuerySlots + 4 * kStages + 1;
  static constexpr int kSharedBytes = kBarrierOffset + 8 * kNumBarriers + 1024;
  static_assert(kSharedBytes <= 232448);
  static_assert(kHeadDimV <= kHeadDim);  // the output is staged where the queries were
};

// What the producer tells the consumers of a tile.
struct alignas(16) PrefillTile {
  int32_t q_row;
  int32_t rows;  // 0: there are no more tiles
  int32_t position;
  int32_t seqlen_k;
  int32_t head;
  int32_t first_block;
  int32_t end_block;
  int32_t unused;
};

// A place in a ring of kSize slots and the parity of its round.
template <int kSize>
struct RingPlace {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++slot == kSize) {
      slot = 0;
      parity ^= 1;
    }
  }
};

template <typename Config>
struct PrefillShared {
  uint32_t base;
  __device__ uint32_t query(int slot) const { return base + slot * Config::kQueryBytes; }
  __device__ uint32_t key(int slot) const { return base + Config::kKeyOffset + slot * Config::kKeyBytes; }
  __device__ uint32_t value(int slot) const { return base + Config::kValueOffset + slot * Config::kValueBytes; }
  __device__ uint32_t tile(int slot) const { return base + Config::kTileOffset + slot * 32; }
  __device__ uint32_t barrier(int i) const { return base + Config::kBarrierOffset + 8 * i; }
  __device__ uint32_t query_full(int slot) const { return barrier(slot); }
  __device__ uint32_t query_empty(int slot) const { return barrier(Config::kQuerySlots + slot); }
  __device__ uint32_t key_full(int slot) const { return barrier(2 * Config::kQuerySlots + slot); }
  __device__ uint32_t key_empty(int slot) const { return barrier(2 * Config::kQuerySlots + Config::kStages + slot); }
  __device__ uint32_t value_full(int slot) const {
    return barrier(2 * Config::kQuerySlots + 2 * Config::kStages + slot);
  }
  __device__ uint32_t value_empty(int slot) const {
    return barrier(2 * Config::kQuerySlots + 3 * Config::kStages + slot);
  }
  // A block of V that has rows to be zeroed before the consumers may have it.
  __device__ uint32_t value_raw() const { return barrier(2 * Config::kQuerySlots + 4 * Config::kStages); }
};

}  // namespace onepass::hopper
