// The short way to the likeliest tokens: where a few hundred of them decide, they are listed and sorted.
//
// How far down the list must go is bounded by what each thread knows anyway, its largest logit: if the n-th largest of
// those is t, at least n tokens are t or more. With thousands of threads few others are, so a histogram of one number a
// thread gives a list little longer than n; the same holds for the mass. A bound that is too weak makes the list too
// long for its memory, and the caller selects instead.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sample_cluster.cuh"
#include "kernels/cuda/sample_select.cuh"
#include "kernels/cuda/sample_slice.cuh"

namespace onepass::sampling {

// Bins of the same width in logits from the largest down to the smallest of the threads' largest, or to where tokens
// stop to matter. The last one holds the rest.
struct LogitBins {
  static constexpr int kCount = 256;

  float max, scale;

  template <typename Order>
  __device__ LogitBins(const Order& order, float least)
      : max(order.max), scale((kCount - 1) / fmaxf(fminf(order.max - least, order.span()), 1e-30f)) {}

  __device__ int bin(float logit) const { return static_cast<int>(fminf((max - logit) * scale, kCount - 1)); }
  // Whether it is in bins 0 to `last_bin`.
  __device__ bool is_upto(float logit, int last_bin) const {
    return last_bin == kCount - 1 || (max - logit) * scale < static_cast<float>(last_bin + 1);
  }
};

// Counts this thread's largest logit; all threads of the row must meet before likeliest_bins(). The histogram is clear.
template <bool kByMass, typename Order>
__device__ void count_own(const Team& team, const Order& order, const LogitBins& bins, float own) {
  const uint32_t key = order.key(own);
  const int bin = bins.bin(own);
  if (key != kNoKey && bin < LogitBins::kCount - 1) {
    add_to_histogram<kByMass>(team.scratch, bin, !kByMass, Order::mass(key));
  }
}
// The tokens of bins 0 to this one pass the target, or it is the last bin.
template <bool kByMass>
__device__ int last_bin_needed(const Team& team, Target target) {
  const int bin = find_crossing<kByMass>(team, LogitBins::kCount, {}, target).bin;
  return bin < 0 ? LogitBins::kCount - 1 : bin;
}

__device__ inline void clear_list(const Team& team) {
  if (threadIdx.x == 0) team.scratch.list_count = 0;
  __syncthreads();
}
__device__ inline void add_to_list(const Team& team, uint32_t key, int token) {
  const uint32_t at = atomicAdd(&team.scratch.list_count, 1u);
  if (at < kListCapacity) team.scratch.list[at] = uint64_t{key} << 32 | static_cast<uint32_t>(token);
}
template <typename Order, bool kInShared>
__device__ void list_bins(const Team& team, const Slice<kInShared>& slice, const Order& order, const LogitBins& bins,
                          int last_bin) {
  slice.for_each([&](float logit, int token) {
    if (!bins.is_upto(logit, last_bin) || token >= slice.first_token + slice.count) return;
    const uint32_t key = order.key(logit);
    if (key != kNoKey) add_to_list(team, key, token);
  });
}

// By the first block alone: `sorted`, of which `count` are there, in ascending order. No two are alike.
__device__ inline void sort_list(Scratch& s, int count) {
  int size = 64;
  while (size < count) size *= 2;
#pragma unroll 1
  for (int i = count + threadIdx.x; i < size; i += kThreads) s.sorted[i] = ~uint64_t{0};
  __syncthreads();
  if (size <= 256) {  // a number goes to where as many as are smaller come before it
    const int group = kThreads / size, i = threadIdx.x / group;
    const uint64_t mine = s.sorted[i];
    int smaller = 0;
#pragma unroll 4
    for (int j = threadIdx.x % group; j < size; j += group) smaller += s.sorted[j] < mine ? 1 : 0;
    for (int step = group / 2; step > 0; step /= 2) smaller += __shfl_xor_sync(~0u, smaller, step);
    __syncthreads();
    if (threadIdx.x % group == 0 && i < count) s.sorted[smaller] = mine;
  } else {  // a bitonic network; a warp's pairs of a distance up to 32 lie in 64 numbers that are its own
    bool is_mine = false;
#pragma unroll 1
    for (int width = 2; width <= size; width *= 2) {
#pragma unroll 1
      for (int distance = width / 2; distance > 0; distance /= 2) {
        if (distance > 32 || !is_mine) {
          __syncthreads();
        } else {
          __syncwarp();
        }
        is_mine = distance <= 32;
        const int pair = threadIdx.x;
        if (pair < size / 2) {
          const int low = 2 * pair - (pair & (distance - 1)), high = low + distance;
          const uint64_t a = s.sorted[low], b = s.sorted[high];
          if ((a > b) == ((low & width) == 0)) s.sorted[low] = b, s.sorted[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

// Brings the blocks' lists to the first one. The number of entries, or -1 when they are too many. All threads of the
// row call it, then finish_merge(), and may write lists again behind that.
__device__ inline int merge_lists(const Team& team) {
  Scratch& s = team.scratch;
  team.meet();
  int counts[kSampleMaxCluster], total = 0;
#pragma unroll
  for (int rank = 0; rank < kSampleMaxCluster; ++rank) {
    counts[rank] = static_cast<int>(in_block(&s, rank < team.blocks ? rank : 0)->list_count);
  }
#pragma unroll
  for (int rank = 0; rank < kSampleMaxCluster; ++rank) {
    if (rank >= team.blocks) counts[rank] = 0;
    total += counts[rank];
  }
  const bool fits = total <= kListCapacity;
  if (fits && team.is_first_block()) {
#pragma unroll 1
    for (int i = threadIdx.x; i < total; i += kThreads) {
      int rank = 0, at = i;
#pragma unroll
      for (int other = 0; other < kSampleMaxCluster - 1; ++other) {
        if (rank == other && at >= counts[other]) at -= counts[other], ++rank;
      }
      s.sorted[i] = in_block(&s, rank)->list[at];
    }
  }
  team.arrive();  // the others may go on while the first block sorts
  return fits ? total : -1;
}
// `merged` is what merge_lists() returned. The first block has the entries sorted.
__device__ inline void finish_merge(const Team& team, int merged) {
  if (merged >= 0 && team.is_first_block()) sort_list(team.scratch, merged);
  team.wait();
}

}  // namespace onepass::sampling
