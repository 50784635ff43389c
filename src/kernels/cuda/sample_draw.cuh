// The draw of one row's token at a temperature, in the three ways that its parameters and its distribution call for.
// Each calls take(token) in one thread of the row.
//
// Every set that top-k, top-p and min-p keep is a beginning of the tokens in the order of their likelihood, so what
// they leave is known by its mass alone, and the draw is one more selection: the token at which the running mass passes
// u * mass. Where neither top-k nor top-p acts the order is that of the ids, as on the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sample_cluster.cuh"
#include "kernels/cuda/sample_list.cuh"
#include "kernels/cuda/sample_select.cuh"
#include "kernels/cuda/sample_slice.cuh"

namespace onepass::sampling {

struct DrawParams {
  int top_k;  // 0: off
  float top_p, min_p;
  double u;  // [0, 1)

  // Passed by the token that completes the nucleus of `mass`, and by the one that is drawn from `mass`.
  __device__ Target nucleus(uint64_t mass) const {
    return {false, static_cast<uint64_t>(ceil(static_cast<double>(top_p) * static_cast<double>(mass))) - 1};
  }
  __device__ Target draw(uint64_t mass) const {
    const uint64_t at = static_cast<uint64_t>(u * static_cast<double>(mass));
    return {false, at < mass ? at : mass - 1};
  }
  __device__ uint32_t last_key() const { return min_p > 0.0f ? WeightOrder::last_key(min_p) : kNoKey - 1; }
};

template <bool kInShared>
__device__ uint64_t mass_upto(Team& team, const Slice<kInShared>& slice, const WeightOrder& order, uint32_t last_key) {
  uint64_t mass = 0;
  slice.for_each([&](float logit, int) {
    const uint32_t key = order.key(logit);
    if (key <= last_key) mass += WeightOrder::mass(key);
  });
  return team.sum(mass);
}

template <bool kInShared, typename Take>
__device__ void draw_by_id(Team& team, const Slice<kInShared>& slice, const WeightOrder& order, const DrawParams& p,
                           const Take& take) {
  const uint32_t last_key = p.last_key();
  const auto mass_of = [&](float logit) {
    const uint32_t key = order.key(logit);
    return key <= last_key ? WeightOrder::mass(key) : 0;
  };
  const auto add = [](ulonglong2 a, ulonglong2 b) { return ulonglong2{a.x + b.x, a.y + b.y}; };
  ulonglong2 mine{0, 0};
  slice.for_each([&](float logit, int) { mine.x += mass_of(logit); });
  const uint64_t of_warp = Team::reduce_warp(mine, add).x;
  const ulonglong2* masses = team.tell(of_warp);
  ulonglong2 sums{0, 0};  // of all warps, of those before this one
  const int self = team.rank * kWarps + team.warp;
  for (int i = team.lane; i < team.blocks * kWarps; i += 32) {
    sums.x += masses[i].x;
    if (i < self) sums.y += masses[i].x;
  }
  sums = Team::reduce_warp(sums, add);
  const uint64_t target = p.draw(sums.x).value;
  if (target < sums.y || target - sums.y >= of_warp) return;
  uint64_t left = target - sums.y;
  bool is_drawn = false;
  slice.for_each_piece([&](const float4& v, int token) {
    if (is_drawn) return;
    const uint64_t masses_of[4] = {mass_of(v.x), mass_of(v.y), mass_of(v.z), mass_of(v.w)};
    const uint64_t of_lane = masses_of[0] + masses_of[1] + masses_of[2] + masses_of[3];
    uint64_t upto = of_lane;
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, upto, step);
      if (team.lane >= step) upto += other;
    }
    const uint64_t of_piece = __shfl_sync(~0u, upto, 31);
    if (left >= of_piece) {
      left -= of_piece;
      return;
    }
    is_drawn = true;
    uint64_t before = upto - of_lane;
    for (int j = 0; j < 4; ++j) {
      if (before <= left && left < before + masses_of[j]) take(token + j);
      before += masses_of[j];
    }
  });
}

// By the first block, from its sorted list of `count` tokens. `total`: of the whole row, where top-k is off.
template <typename Take>
__device__ void draw_from_sorted(const Team& team, int count, uint64_t total, const DrawParams& p, const Take& take) {
  Scratch& s = team.scratch;
  const int first = threadIdx.x * 2;
  uint32_t keys[3];  // of this thread's two, and the next
  for (int i = 0; i < 3; ++i) keys[i] = first + i < count ? static_cast<uint32_t>(s.sorted[first + i] >> 32) : kNoKey;
  uint64_t masses[2];
  for (int i = 0; i < 2; ++i) masses[i] = keys[i] == kNoKey ? 0 : WeightOrder::mass(keys[i]);
  Tally sum;
  const uint64_t before = team.scan({0, masses[0] + masses[1]}, &sum).mass;
  const uint64_t upto[3] = {before, before + masses[0], before + masses[0] + masses[1]};
  const auto passes = [&](int i, Target target) { return upto[i] <= target.value && target.value < upto[i + 1]; };

  uint64_t mass = total;
  if (p.top_k > 0) {
    const int kept = min(p.top_k, count);
    for (int i = 0; i < 2; ++i) {
      if (first + i == kept - 1) s.found[0] = upto[i + 1];
    }
    __syncthreads();
    mass = s.found[0];
  }
  if (p.top_p < 1.0f) {
    for (int i = 0; i < 2; ++i) {
      if (passes(i, p.nucleus(mass))) s.found[1] = upto[i + 1];
    }
    __syncthreads();
    mass = s.found[1];
  }
  if (p.min_p > 0.0f) {
    const uint32_t last_key = p.last_key();
    for (int i = 0; i < 2; ++i) {
      if (keys[i] <= last_key && keys[i + 1] > last_key) s.found[2] = upto[i + 1];
    }
    __syncthreads();
    mass = min(mass, s.found[2]);
  }
  for (int i = 0; i < 2; ++i) {
    if (passes(i, p.draw(mass))) take(static_cast<int>(static_cast<uint32_t>(s.sorted[first + i])));
  }
}

template <bool kInShared, typename Take>
__device__ void draw_by_selection(Team& team, const Slice<kInShared>& slice, const WeightOrder& order,
                                  const DrawParams& p, const Take& take) {
  uint64_t mass = p.top_k > 0
                      ? select<true>(team, slice, order, {true, static_cast<uint64_t>(p.top_k) - 1}).through.mass
                      : mass_upto(team, slice, order, kNoKey - 1);
  if (p.top_p < 1.0f) mass = select<true>(team, slice, order, p.nucleus(mass)).through.mass;
  if (p.min_p > 0.0f) mass = min(mass, mass_upto(team, slice, order, p.last_key()));
  const Selection drawn = select<true>(team, slice, order, p.draw(mass));
  for_each_of_key(team, slice, order, drawn.key, [&](uint32_t rank, int token) {
    if (rank == drawn.rank) take(token);
  });
}

// `own`, `least`: this thread's largest logit, and the smallest of such. The histogram and the list are clear.
template <bool kInShared, typename Take>
__device__ void draw_token(Team& team, const Slice<kInShared>& slice, const WeightOrder& order, float own, float least,
                           int vocab_size, DrawParams p, const Take& take) {
  if (p.top_k >= vocab_size) p.top_k = 0;
  if (p.top_k == 0 && p.top_p >= 1.0f) return draw_by_id(team, slice, order, p, take);
  int listed = -1;
  uint64_t total = 0;
  if (p.top_k <= kListCapacity) {
    const LogitBins bins(order, least);
    int last_bin;
    if (p.top_k > 0) {
      count_own<false>(team, order, bins, own);
      team.meet();
      last_bin = last_bin_needed(team, {true, static_cast<uint64_t>(p.top_k) - 1});
    } else {
      count_own<true>(team, order, bins, own);
      total = mass_upto(team, slice, order, kNoKey - 1);
      last_bin = last_bin_needed(team, p.nucleus(total));
    }
    list_bins(team, slice, order, bins, last_bin);
    listed = merge_lists(team);
  }
  // The host sorts when top-k drops a token, if only one that weighs next to nothing.
  if (p.top_p >= 1.0f && (listed < 0 || listed <= p.top_k)) {
    uint64_t candidates = 0;
    slice.for_each([&](float logit, int) { candidates += (order.max - logit) * order.scale < 150.0f ? 1 : 0; });
    if (team.sum(candidates) <= static_cast<uint64_t>(p.top_k)) return draw_by_id(team, slice, order, p, take);
  }
  if (listed < 0) {
    draw_by_selection(team, slice, order, p, take);
  } else if (team.is_first_block()) {
    draw_from_sorted(team, listed, total, p, take);
  }
}

}  // namespace onepass::sampling
