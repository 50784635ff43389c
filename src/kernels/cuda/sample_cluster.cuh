// What the thread blocks of one row tell each other: reductions, and the memory that they do it in.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/sample_plan.h"

namespace onepass::sampling {

constexpr int kThreads = kSampleThreads;
constexpr int kWarps = kThreads / 32;
constexpr int kSlots = kSampleMaxCluster * kWarps;  // warps of a row
constexpr int kBins = 1024;
constexpr int kListCapacity = 1024;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kMaxFloat = std::numeric_limits<float>::max();
static_assert(kBins == 2 * kThreads && kListCapacity == 2 * kThreads && kSlots == 128);

// How many tokens, and their weights' sum in units of 2^-40: integers, whose sum does not depend on the order.
struct Tally {
  uint32_t count = 0;
  uint64_t mass = 0;

  __device__ Tally operator+(const Tally& other) const { return {count + other.count, mass + other.mass}; }
};

// The bin where a running tally passes a target.
struct Crossing {
  int bin;       // -1: nowhere
  Tally before;  // of all bins before it; of all bins when there is none
};

// A block's own memory beside its slice of the logits.
struct alignas(16) Scratch {
  uint32_t counts[kBins], mass_low[kBins], mass_high[kBins];
  // Or, while selecting, a histogram that is kept.
  uint64_t list[kListCapacity];    // key << 32 | token
  uint64_t sorted[kListCapacity];  // of the first block: the lists of all, in order
  ulonglong2 slots[2][kSlots];     // what each of the row's warps says, in the order of their tokens
  Tally warp_tallies[kWarps];
  Crossing crossing;
  uint64_t found[3];  // of the first block, while it draws from its list
  SampleRow row;
  uint32_t list_count;
  int last_is_listed;
  int token;  // that was chosen, where logits stay in global memory
};

static_assert(sizeof(Scratch::list) + sizeof(Scratch::sorted) >= 3 * kBins * sizeof(uint32_t));

// What the block's threads wrote before is seen by who waits for the barrier: one warp's fence is enough for all of
// them, and 16 of them would queue. All threads of the block meet here too.
__device__ inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  __syncthreads();
  if (threadIdx.x < 32) asm volatile("fence.acq_rel.cluster;" ::: "memory");
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}
// `mine` is in shared memory; the same place of block `rank`.
template <typename T>
__device__ inline T* in_block(T* mine, int rank) {
#if __CUDA_ARCH__ >= 900
  return static_cast<T*>(__cluster_map_shared_rank(mine, rank));
#else
  return mine;
#endif
}

// This thread's place among the row's.
struct Team {
  Scratch& scratch;
  int blocks = cluster_size();
  int rank = cluster_rank();
  int warp = threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  int turn = 0;  // of Scratch::slots: what was said last may still be read while the next is written

  __device__ bool is_first_block() const { return rank == 0; }

  // All threads of the row meet; what any of them wrote is seen by all.
  __device__ void meet() const {
    arrive();
    wait();
  }
  // The same in two steps: what was written before arrive() is seen after wait().
  __device__ void arrive() const {
    if (blocks > 1) cluster_arrive();
  }
  __device__ void wait() const {
    if (blocks > 1) {
      cluster_wait();
    } else {
      __syncthreads();
    }
  }

  // Meets, and returns what each warp of the row says (all its lanes the same), in the order of the tokens. Valid until
  // the next call but one.
  __device__ const ulonglong2* tell(uint64_t x, uint64_t y = 0) {
    ulonglong2* slots = scratch.slots[turn];
    turn ^= 1;
    if (lane < blocks) *in_block(&slots[rank * kWarps + warp], lane) = {x, y};
    meet();
    return slots;
  }

  // The same to the first block alone; the others' answer means nothing.
  __device__ const ulonglong2* tell_first(uint64_t x) {
    ulonglong2* slots = scratch.slots[turn];
    turn ^= 1;
    if (lane == 0) *in_block(&slots[rank * kWarps + warp], 0) = {x, 0};
    meet();
    return slots;
  }

  // f(i) for this lane's share of the slots.
  template <typename F>
  __device__ void for_each_slot(const F& f) const {
#pragma unroll
    for (int i = 0; i < kSlots; i += 32) {
      if (i + lane < blocks * kWarps) f(i + lane);
    }
  }

  // Over the lanes, and over all threads of the row, in an order that is always the same; all of them get the result.
  template <typename T>
  __device__ static T sum_of_warp(T value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    return value;
  }
  __device__ uint64_t sum(uint64_t value) {
    const ulonglong2* slots = tell(sum_of_warp(value));
    value = 0;
    for_each_slot([&](int i) { value += slots[i].x; });
    return sum_of_warp(value);
  }
  __device__ double sum(double value) {
    const ulonglong2* slots = tell(static_cast<uint64_t>(__double_as_longlong(sum_of_warp(value))));
    value = 0.0;
    for_each_slot([&](int i) { value += __longlong_as_double(static_cast<long long>(slots[i].x)); });
    return sum_of_warp(value);
  }

  // Of the block alone: the sum of the threads before this one; `total` of all. The masses where there are any.
  template <bool kMasses>
  __device__ Tally scan(Tally mine, Tally* total) const {
    static_assert(kWarps <= 32);
    Tally upto = mine;
    for (int step = 1; step < 32; step *= 2) {
      Tally left{__shfl_up_sync(~0u, upto.count, step)};
      if constexpr (kMasses) left.mass = __shfl_up_sync(~0u, upto.mass, step);
      if (lane >= step) upto = upto + left;
    }
    if (lane == 31) scratch.warp_tallies[warp] = upto;
    __syncthreads();
    const Tally of_warp = lane < kWarps ? scratch.warp_tallies[lane] : Tally();
    __syncthreads();  // before anyone writes the next scan's
    total->count = __reduce_add_sync(~0u, of_warp.count);
    Tally before{__reduce_add_sync(~0u, lane < warp ? of_warp.count : 0)};
    if constexpr (kMasses) {
      total->mass = sum_of_warp(of_warp.mass);
      before.mass = sum_of_warp(lane < warp ? of_warp.mass : 0);
    }
    return {before.count + upto.count - mine.count, before.mass + upto.mass - mine.mass};
  }
};

}  // namespace onepass::sampling
