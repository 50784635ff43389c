// Selection without sorting: the token at which the running count, or the running mass, passes a target when tokens are
// taken from the likeliest to the least likely, the smaller id first where two are equally likely.
//
// A token's key says where it stands, the likeliest has the smallest. The keys are searched by radix: a histogram of
// count and mass over their first 10 bits, then over the next 10 of those in the bin where the target is passed, and so
// on; tokens of the same key weigh the same, so how many of them it takes is a division.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sample_cluster.cuh"
#include "kernels/cuda/sample_slice.cuh"

namespace onepass::sampling {

constexpr uint32_t kNoKey = ~0u;  // not a candidate

// 2^x; what would be denormal is 0.
__device__ inline float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// A token's weight is exp((logit - max) / temperature), and its key the octaves by which it is less than the
// likeliest's. What is 40 or more octaves below weighs nothing: 262,144 such tokens are together less than 2.5e-7 of
// the whole.
struct WeightOrder {
  static constexpr int kBits = 30;
  static constexpr float kOctaves = 40.0f;
  static constexpr float kSteps = 1 << 24;  // of an octave: as fine as a float's digits

  float max;    // finite
  float scale;  // octaves a logit: log2(e) / temperature

  __device__ WeightOrder(float max_logit, float temperature)
      : max(max_logit), scale(fminf(1.44269504f / temperature, kMaxFloat)) {}

  __device__ uint32_t key(float logit) const {
    const float octaves = (max - logit) * scale;
    return octaves < kOctaves ? static_cast<uint32_t>(octaves * kSteps) : kNoKey;  // NaN is no candidate
  }
  __device__ static uint64_t to_mass(float weight) { return __float2ull_rz(weight * 0x1p40f); }
  __device__ static uint64_t mass(uint32_t key) {
    return to_mass(exp2_fast(static_cast<float>(key) * (-1.0f / kSteps)));
  }
  // The largest key whose weight is at least `weight`, more than 0, of the likeliest's.
  __device__ static uint32_t last_key(float weight) {
    const float octaves = -log2f(weight);
    return octaves < kOctaves ? static_cast<uint32_t>(octaves * kSteps) : kNoKey - 1;
  }
  // The quicker way, for sums of many: the weight, 0 where it is 2^-126 or less or is NaN.
  __device__ float weight(float logit) const { return exp2_fast(fmaxf((logit - max) * scale, -150.0f)); }
  // How far below `max` it is worth to tell tokens apart, in logits.
  __device__ float span() const { return kOctaves / scale; }
};

// The larger float first; NaN counts as -inf.
__device__ inline uint32_t ordered_bits(float x) {
  if (isnan(x)) x = kMinusInfinity;
  if (x == 0.0f) x = 0.0f;  // -0 is no less than 0
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_ordered_bits(uint32_t bits) {
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}
struct LogitOrder {
  static constexpr int kBits = 32;

  float max;

  __device__ static uint32_t key(float logit) { return ~ordered_bits(logit); }
  __device__ static float logit(uint32_t key) { return from_ordered_bits(~key); }
  __device__ static uint64_t mass(uint32_t) { return 0; }
  __device__ static float span() { return 64.0f; }
};

struct Target {
  bool by_count;
  uint64_t value;  // of count or mass, to be passed

  __device__ bool is_passed(const Tally& tally) const { return (by_count ? tally.count : tally.mass) > value; }
};

__device__ inline void clear_histogram(Scratch& s) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) s.counts[i] = s.mass_low[i] = s.mass_high[i] = 0;
}

// What a histogram holds: of counts and masses at least one.
template <bool kMasses>
__device__ inline void add_to_histogram(Scratch& s, int bin, bool counts, uint64_t mass) {
  if (counts) atomicAdd(&s.counts[bin], 1u);
  if constexpr (kMasses) {
    const uint32_t low = static_cast<uint32_t>(mass), before = atomicAdd(&s.mass_low[bin], low);
    const uint32_t high = static_cast<uint32_t>(mass >> 32) + (before + low < before ? 1 : 0);
    if (high != 0) atomicAdd(&s.mass_high[bin], high);
  }
}

// The first `bins` of the row's histograms, which all have met after writing, summed. All threads of a block call it
// and all get the answer; the histograms must not change before all have met again.
template <bool kMasses>
__device__ Crossing find_crossing(const Team& team, int bins, Tally before, Target target) {
  Scratch& s = team.scratch;
  Tally mine[2];  // of bins 2 * thread and the next
  if (static_cast<int>(threadIdx.x) * 2 < bins) {
    // All loads of a kind are on their way before the first is needed.
    const auto sum_of = [&](uint32_t(&of_block)[kBins]) {
      uint2 found[kSampleMaxCluster];
#pragma unroll
      for (int i = 0; i < kSampleMaxCluster; ++i) {
        found[i] = *reinterpret_cast<const uint2*>(in_block(&of_block[threadIdx.x * 2], i < team.blocks ? i : 0));
      }
      ulonglong2 sum{0, 0};
#pragma unroll
      for (int i = 0; i < kSampleMaxCluster; ++i) {
        if (i < team.blocks) sum.x += found[i].x, sum.y += found[i].y;
      }
      return sum;
    };
    if (target.by_count) {
      const ulonglong2 counts = sum_of(s.counts);
      mine[0].count = static_cast<uint32_t>(counts.x), mine[1].count = static_cast<uint32_t>(counts.y);
    }
    if constexpr (kMasses) {
      const ulonglong2 low = sum_of(s.mass_low), high = sum_of(s.mass_high);
      mine[0].mass = low.x + (high.x << 32), mine[1].mass = low.y + (high.y << 32);
    }
  }
  Tally total;
  Tally here = before + team.scan<kMasses>(mine[0] + mine[1], &total);
  if (threadIdx.x == 0) s.crossing = {-1, before + total};
  __syncthreads();
  for (int i = 0; i < 2; ++i) {
    const Tally next = here + mine[i];
    if (!target.is_passed(here) && target.is_passed(next)) s.crossing = {static_cast<int>(threadIdx.x) * 2 + i, here};
    here = next;
  }
  __syncthreads();
  return s.crossing;
}

struct Selection {
  bool found;     // false: all tokens together do not pass the target
  uint32_t key;   // of the token that passes it
  uint32_t rank;  // how many of that key, by id, come before that token
  Tally through;  // of all tokens up to it; of all there are when none is found
};

// The histogram over the first bits is the same for each selection from a row: the first one keeps it where the lists
// were, and those behind it find it there.
__device__ inline void copy_histogram(uint32_t* to, const uint32_t* from) {
  for (int i = threadIdx.x; i < 3 * kBins; i += kThreads) to[i] = from[i];
}

// By count or, with kMasses, by either. Tallies through a selection by mass have no count.
template <bool kMasses, typename Order, bool kInShared>
__device__ __noinline__ Selection select(Team team, Slice<kInShared> slice, Order order, Target target,
                                         bool is_first = true) {
  Scratch& s = team.scratch;
  uint32_t* const kept = reinterpret_cast<uint32_t*>(s.list);
  uint32_t prefix = 0;
  Tally before;
#pragma unroll 1
  for (int high = Order::kBits; high > 0;) {
    const int shift = high > 10 ? high - 10 : 0;
    if (high == Order::kBits && !is_first) {
      copy_histogram(s.counts, kept);
    } else {
      clear_histogram(s);
      __syncthreads();
      slice.for_each([&](float logit, int token) {
        const uint32_t key = order.key(logit);
        if (key == kNoKey || (high < Order::kBits && key >> high != prefix)) return;
        if (token >= slice.first_token + slice.count) return;
        add_to_histogram<kMasses>(s, (key >> shift) & ((1u << (high - shift)) - 1), target.by_count, Order::mass(key));
      });
    }
    team.meet();
    if (high == Order::kBits && is_first) copy_histogram(kept, s.counts);
    const Crossing crossing = find_crossing<kMasses>(team, 1 << (high - shift), before, target);
    team.meet();
    if (crossing.bin < 0) return {false, 0, 0, crossing.before};
    before = crossing.before;
    prefix = prefix << (high - shift) | crossing.bin;
    high = shift;
  }
  const uint64_t each = kMasses ? Order::mass(prefix) : 1;
  const uint64_t have = target.by_count ? before.count : before.mass;
  const uint32_t rank = static_cast<uint32_t>((target.value - have) / (target.by_count ? 1 : each));
  return {true, prefix, rank, before + Tally{rank + 1, (rank + 1) * each}};
}

// f(rank, token) for each of this thread's tokens of key `key`, where `rank` of that key, in the whole row, have
// smaller ids. All threads of the row call it.
template <typename Order, bool kInShared, typename F>
__device__ void for_each_of_key(Team& team, const Slice<kInShared>& slice, const Order& order, uint32_t key,
                                const F& f) {
  const auto is_one = [&](float logit, int token) {
    return order.key(logit) == key && token < slice.first_token + slice.count;
  };
  uint32_t count = 0;
  slice.for_each([&](float logit, int token) { count += is_one(logit, token) ? 1 : 0; });
  count = __reduce_add_sync(~0u, count);
  const ulonglong2* counts = team.tell(count);
  uint32_t before = 0;
  team.for_each_slot([&](int i) {
    if (i < team.rank * kWarps + team.warp) before += static_cast<uint32_t>(counts[i].x);
  });
  before = __reduce_add_sync(~0u, before);
  if (count == 0) return;
  slice.for_each_piece([&](const float4& v, int token) {
    const bool is[4] = {is_one(v.x, token), is_one(v.y, token + 1), is_one(v.z, token + 2), is_one(v.w, token + 3)};
    uint32_t mine = before, all = 0;
    for (int j = 0; j < 4; ++j) {
      const uint32_t lanes = __ballot_sync(~0u, is[j]);
      mine += __popc(lanes & ((1u << team.lane) - 1));
      all += __popc(lanes);
    }
    for (int j = 0; j < 4; ++j) {
      if (is[j]) f(mine++, token + j);
    }
    before += all;
  });
}

}  // namespace onepass::sampling
