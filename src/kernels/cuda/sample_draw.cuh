// The draw of one row's token at a temperature, in the three ways that its parameters and its distribution call for.
// Each returns the token in one thread of the row, and -1 in the others.
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

// A draw is a call, so that its registers are its own; what it changes comes back by value, as an address would keep
// its neighbours in memory.
struct Drawn {
  int token;         // in one thread of the row, -1 in the others
  int turn;          // of Team
  bool is_released;  // the copy of the next row into the slice has begun
};

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

// The whole row's, to about 1e-7 of it.
template <bool kInShared>
__device__ uint64_t total_mass(Team& team, const Slice<kInShared>& slice, const WeightOrder& order) {
  float mine = 0.0f;
  slice.for_each([&](float logit, int) { mine += order.weight(logit); });
  return team.sum(WeightOrder::to_mass(mine));
}

template <bool kInShared>
__device__ int draw_by_id(Team& team, const Slice<kInShared>& slice, const WeightOrder& order, const DrawParams& p) {
  const auto weight_of = [&](float logit) {
    const float weight = order.weight(logit);
    return weight >= p.min_p ? weight : 0.0f;
  };
  float mine = 0.0f;
  slice.for_each([&](float logit, int) { mine += weight_of(logit); });
  const uint64_t of_warp = Team::sum_of_warp(WeightOrder::to_mass(mine));
  const ulonglong2* masses = team.tell(of_warp);
  uint64_t total = 0, before_warp = 0;  // of all warps, of those before this one
  const int self = team.rank * kWarps + team.warp;
  team.for_each_slot([&](int i) {
    total += masses[i].x;
    if (i < self) before_warp += masses[i].x;
  });
  total = Team::sum_of_warp(total), before_warp = Team::sum_of_warp(before_warp);
  const uint64_t target = p.draw(total).value;
  if (target < before_warp || target - before_warp >= of_warp) return -1;

  // It is one of this warp's. Summed in another order the warp's mass may come out a little less than the target, which
  // is the last token's then.
  uint64_t left = target - before_warp;
  int drawn = -1, last = -1;
  bool is_drawn = false;
  slice.for_each_piece([&](const float4& v, int token) {
    if (is_drawn) return;
    const uint64_t of_token[4] = {WeightOrder::to_mass(weight_of(v.x)), WeightOrder::to_mass(weight_of(v.y)),
                                  WeightOrder::to_mass(weight_of(v.z)), WeightOrder::to_mass(weight_of(v.w))};
    const uint64_t of_lane = of_token[0] + of_token[1] + of_token[2] + of_token[3];
    uint64_t upto = of_lane;
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, upto, step);
      if (team.lane >= step) upto += other;
    }
    uint64_t before = upto - of_lane;
    for (int j = 0; j < 4; ++j) {
      if (of_token[j] == 0) continue;
      last = token + j;
      if (before <= left && left < before + of_token[j]) drawn = token + j;
      before += of_token[j];
    }
    const uint64_t of_piece = __shfl_sync(~0u, upto, 31);
    is_drawn = left < of_piece;
    left -= of_piece;
  });
  if (is_drawn) return drawn;
  // By all lanes, those without a mass too.
  const int most = static_cast<int>(__reduce_max_sync(~0u, static_cast<unsigned>(last + 1))) - 1;
  return last >= 0 && last == most ? last : -1;
}

// By the first block, from its sorted list of `count` tokens. `total`: of the whole row, where top-k is off.
__device__ inline int draw_from_sorted(const Team& team, int count, uint64_t total, const DrawParams& p) {
  Scratch& s = team.scratch;
  const int first = threadIdx.x * 2;
  uint32_t keys[3];  // of this thread's two, and the next
  for (int i = 0; i < 3; ++i) keys[i] = first + i < count ? static_cast<uint32_t>(s.sorted[first + i] >> 32) : kNoKey;
  uint64_t masses[2];
  for (int i = 0; i < 2; ++i) masses[i] = keys[i] == kNoKey ? 0 : WeightOrder::mass(keys[i]);
  Tally listed;
  const uint64_t before = team.scan<true>({0, masses[0] + masses[1]}, &listed).mass;
  const uint64_t upto[3] = {before, before + masses[0], before + masses[0] + masses[1]};
  const auto passes = [&](int i, Target target) { return upto[i] <= target.value && target.value < upto[i + 1]; };

  // Of what each bound keeps.
  if (threadIdx.x == 0) s.found[0] = s.found[1] = s.found[2] = listed.mass;
  __syncthreads();
  uint64_t mass = total;
  if (p.top_k > 0) {
    for (int i = 0; i < 2; ++i) {
      if (first + i == p.top_k - 1 && first + i < count) s.found[0] = upto[i + 1];
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
    if (passes(i, p.draw(mass))) return static_cast<int>(static_cast<uint32_t>(s.sorted[first + i]));
  }
  return -1;
}

// `total` as above.
template <bool kInShared>
__device__ __noinline__ Drawn draw_by_selection(Team team, Slice<kInShared> slice, WeightOrder order, uint64_t total,
                                                DrawParams p) {
  uint64_t mass = total;
  bool is_first = true;
  if (p.top_k > 0) {
    mass = select<true>(team, slice, order, {true, static_cast<uint64_t>(p.top_k) - 1}).through.mass;
    is_first = false;
  }
  if (p.top_p < 1.0f) {
    mass = select<true>(team, slice, order, p.nucleus(mass), is_first).through.mass;
    is_first = false;
  }
  if (p.min_p > 0.0f) {
    const uint32_t last_key = p.last_key();
    uint64_t likely = 0;
    slice.for_each([&](float logit, int) {
      const uint32_t key = order.key(logit);
      if (key <= last_key) likely += WeightOrder::mass(key);
    });
    mass = min(mass, team.sum(likely));
  }
  const Selection selected = select<true>(team, slice, order, p.draw(mass), is_first);
  int drawn = -1;
  for_each_of_key(team, slice, order, selected.key, [&](uint32_t rank, int token) {
    if (rank == selected.rank) drawn = token;
  });
  return {drawn, team.turn, false};
}

// `own`, `least`: this thread's largest logit, and the smallest of such. The histogram and the list are clear. `next`:
// the row that is to be copied into the slice once that is of no more use, or null.
template <bool kInShared>
__device__ __noinline__ Drawn draw_token(Team team, Slice<kInShared> slice, WeightOrder order, float own, float least,
                                         int vocab_size, DrawParams p, const float* next) {
  if (p.top_k >= vocab_size) p.top_k = 0;
  bool is_by_id = p.top_k == 0 && p.top_p >= 1.0f;
  int listed = -1;
  uint64_t total = 0;
  // The host sorts when top-k drops a token, if only one that weighs next to nothing.
  const auto may_drop_none = [&] { return p.top_p >= 1.0f && (listed < 0 || listed <= p.top_k); };
  bool is_released = false;
  if (!is_by_id && p.top_k <= kListCapacity) {
    const LogitBins bins(order, least);
    int last_bin;
    if (p.top_k > 0) {
      count_own<false>(team, order, bins, own);
      team.meet();
      last_bin = last_bin_needed<false>(team, {true, static_cast<uint64_t>(p.top_k) - 1});
    } else {
      count_own<true>(team, order, bins, own);
      total = total_mass(team, slice, order);
      last_bin = last_bin_needed<true>(team, p.nucleus(total));
    }
    list_bins(team, slice, order, bins, last_bin);
    listed = merge_lists(team);
    if (listed >= 0 && !may_drop_none() && next != nullptr) {
      slice.start_load(next);
      is_released = true;
    }
    finish_merge(team, listed);
  }
  if (!is_by_id && may_drop_none()) {
    uint64_t candidates = 0;
    slice.for_each([&](float logit, int) { candidates += (order.max - logit) * order.scale < 150.0f ? 1 : 0; });
    is_by_id = team.sum(candidates) <= static_cast<uint64_t>(p.top_k);
  }
  int token = -1;
  if (is_by_id) {
    token = draw_by_id(team, slice, order, p);
  } else if (listed < 0) {
    return draw_by_selection(team, slice, order, total, p);
  } else if (team.is_first_block()) {
    token = draw_from_sorted(team, listed, total, p);
  }
  return {token, team.turn, is_released};
}

}  // namespace onepass::sampling
