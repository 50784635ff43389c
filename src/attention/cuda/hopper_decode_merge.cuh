// What the decode kernel does with results: of whole tiles to `out`, of parts to their slots, and the merge of the
// parts.
//
// The slots need neither flags nor fences. They are zero before, and are written 8 or 16 bytes at a time, whose last
// word is never zero (0 is written as -0), so a number tells by itself that it has come. The worker with a tile's last
// part merges the tile, after everything else it has to do; it waits for workers of lower numbers only, which have
// begun before it. It leaves zeros behind.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/hopper_decode_loader.cuh"

namespace onepass::hopper_decode {

// Below any score; a maximum that is still this belongs to a row that has seen no key. Finite, so that no difference is
// NaN.
inline constexpr float kNoScore = -3.0e38f;

__device__ __forceinline__ float not_zero(float x) { return x == 0.0f ? -0.0f : x; }
__device__ __forceinline__ bool has_come(float2 x) { return __float_as_uint(x.y) != 0; }
__device__ __forceinline__ bool has_come(float4 x) { return __float_as_uint(x.w) != 0; }

// Of a row when all its keys are known: the maximum and the sum with the sink's share, and what the output, which is
// relative to the maximum without it, is to be multiplied by.
struct RowEnd {
  float factor;
  float max;
  float sum;
};

__device__ __forceinline__ int query_head(const RunArgs& args, const Item& item, int row) {
  const int group = args.group.value;
  return item.head_kv * group + row - divide(row, args.group) * group;
}

// Row `row` of the item's rows is query token * group + query head. The sink counts once, here.
__device__ __forceinline__ RowEnd end_row(const RunArgs& args, const Item& item, int row, float max, float sum) {
  float factor = 1.0f;
  if (args.sinks != nullptr && sum > 0.0f) {
    const float sink = args.sinks[query_head(args, item, row)] * kLog2E, new_max = fmaxf(max, sink);
    factor = exp2_approx(max - new_max);
    sum = sum * factor + exp2_approx(sink - new_max);
    max = new_max;
  }
  return {.factor = sum > 0.0f ? __fdividef(factor, sum) : 0.0f, .max = max, .sum = sum};
}

// By one thread a row, after the output, which somebody may wait for.
__device__ __forceinline__ void write_lse(const RunArgs& args, const Item& item, int row, const RowEnd& end) {
  if (args.softmax_lse == nullptr) return;
  const int64_t head = query_head(args, item, row);
  args.softmax_lse[head * args.total_q + item.q_begin + divide(row, args.group)] =
      end.sum > 0.0f ? (end.max + log2f(end.sum)) * kLn2 : -INFINITY;
}

// Numbers d to d + 3 of a row.
template <bool kBf16>
__device__ __forceinline__ void write_out(const RunArgs& args, const Item& item, int row, int d, float4 o,
                                          float factor) {
  const int64_t token = item.q_begin + divide(row, args.group);
  const int64_t offset = token * args.out_row_stride + query_head(args, item, row) * args.out_head_stride + d;
  const float x = o.x * factor, y = o.y * factor, z = o.z * factor, w = o.w * factor;
  if (args.out_is_float) {
    *reinterpret_cast<float4*>(static_cast<float*>(args.out) + offset) = make_float4(x, y, z, w);
  } else {
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(args.out) + offset) =
        make_uint2(pack<Element<kBf16>>(x, y), pack<Element<kBf16>>(z, w));
  }
}

template <int kHeadDim>
__device__ __forceinline__ float4* slot_out(const RunArgs& args, int slot, int row, int d) {
  return reinterpret_cast<float4*>(args.slots + (static_cast<int64_t>(slot) * args.slot_rows + row) * kHeadDim + d);
}

__device__ __forceinline__ float2* slot_sum(const RunArgs& args, int slot, int row) {
  return reinterpret_cast<float2*>(args.sums) + static_cast<int64_t>(slot) * args.slot_rows + row;
}

template <int kHeadDim>
__device__ __forceinline__ void write_part(const RunArgs& args, const Item& item, int row, int d, float4 o, float max,
                                           float sum) {
  const int slot = item.first_slot + item.part;
  store_relaxed(slot_out<kHeadDim>(args, slot, row, d), make_float4(o.x, o.y, o.z, not_zero(o.w)));
  if (d == 0) store_relaxed(slot_sum(args, slot, row), make_float2(max, not_zero(sum)));
}

__device__ __forceinline__ void add(float4& total, float weight, const float4& o) {
  total.x += weight * o.x;
  total.y += weight * o.y;
  total.z += weight * o.z;
  total.w += weight * o.w;
}

// A row's merged output and LSE, of the head `heads_back` before the item's; a lane has every kLanes-th four numbers.
template <int kHeadDim, bool kBf16, int kVectorsOfLane>
__device__ __forceinline__ void write_row(const RunArgs& args, const Item& item, int heads_back, int row, int lane,
                                          const float4 (&total)[kVectorsOfLane], float max, float sum) {
  Item head_item = item;
  head_item.head_kv -= heads_back;
  const RowEnd end = end_row(args, head_item, row, max, sum);
#pragma unroll
  for (int v = 0; v < kVectorsOfLane; ++v) {
    write_out<kBf16>(args, head_item, row, (v * (kHeadDim / 4 / kVectorsOfLane) + lane) * 4, total[v], end.factor);
  }
  if (lane == 0) write_lse(args, head_item, row, end);
}

// The same as merge_parts() where parts and rows are so few that a thread can have four numbers of a row of all parts:
// no sums over lanes, no meeting of warps, half of the time. All threads of a block. (With 16 parts, at 1 x 4,096, the
// shares of merge_parts() are faster, 9.4 us instead of 9.7.)
inline constexpr int kFewParts = 8;

template <int kHeadDim>
__device__ __forceinline__ bool has_few_parts(const RunArgs& args, const Item& item) {
  const int rows = item.seqlen_q * static_cast<int>(args.group.value) * item.merge_heads;
  return kHeadDim <= 128 && item.parts <= kFewParts && rows * (kHeadDim / 4) <= kWarps * 32;
}

template <int kHeadDim, bool kBf16>
__device__ __forceinline__ void merge_few_parts(const RunArgs& args, const Item& item) {
  constexpr int kVectors = kHeadDim / 4;
  const int rows = item.seqlen_q * static_cast<int>(args.group.value);
  const int row = threadIdx.x / kVectors, d = threadIdx.x % kVectors * 4;
  if (row >= rows * item.merge_heads) return;
  const uint32_t lanes = kVectors >= 32 ? ~0u : ((1u << kVectors) - 1) << (threadIdx.x % 32 / kVectors * kVectors);
  const int heads_back = item.merge_heads - 1 - row / rows, head_row = row % rows;
  const int first_slot = item.first_slot - heads_back * args.max_slots;
  float4* const from = slot_out<kHeadDim>(args, first_slot, head_row, d);
  float2* const sums_from = slot_sum(args, first_slot, head_row);
  const int64_t stride = static_cast<int64_t>(args.slot_rows) * kVectors;
  float4 out[kFewParts] = {};
  float2 sums[kFewParts];
#pragma unroll
  for (int j = 0; j < kFewParts; ++j) sums[j] = make_float2(kNoScore, 0.0f);
  bool missing;
  do {
    missing = false;
#pragma unroll
    for (int j = 0; j < kFewParts; ++j) {
      if (j < item.parts && !has_come(sums[j])) sums[j] = load_relaxed(sums_from + j * args.slot_rows);
      if (j < item.parts && !has_come(out[j])) out[j] = load_relaxed(from + j * stride);
    }
#pragma unroll
    for (int j = 0; j < kFewParts; ++j) missing |= j < item.parts && (!has_come(sums[j]) || !has_come(out[j]));
  } while (__any_sync(lanes, missing));
  float max = kNoScore, sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kFewParts; ++j) max = fmaxf(max, sums[j].x);
  float4 total = {};
#pragma unroll
  for (int j = 0; j < kFewParts; ++j) {
    const float weight = exp2_approx(sums[j].x - max);
    sum += weight * sums[j].y;
    add(total, weight, out[j]);
  }
  Item head_item = item;
  head_item.head_kv -= heads_back;
  const RowEnd end = end_row(args, head_item, head_row, max, sum);
  write_out<kBf16>(args, head_item, head_row, d, total, end.factor);
#pragma unroll
  for (int j = 0; j < kFewParts; ++j) {
    if (j >= item.parts) break;
    from[j * stride] = {};
    if (d == 0) sums_from[j * args.slot_rows] = {};
  }
  if (d == 0) write_lse(args, head_item, head_row, end);
}

// All threads of a block: merges the parts of `item`'s tile, of this KV head and of the one before if merge_heads is 2.
// What takes time here is trips to the L2 cache, 0.4 to 0.7 us each, and then a thread's chain of instructions, one
// every five clocks. So a group of lanes has a row, asks for its parts' outputs and sums at once, and again for what
// has not come; groups share a row's parts where rows are few.
template <int kHeadDim, bool kBf16>
__device__ __forceinline__ void merge_parts(const RunArgs& args, const Item& item, uint8_t* shared) {
  constexpr int kVectors = kHeadDim / 4, kLanes = kVectors < 32 ? kVectors : 32, kVectorsOfLane = kVectors / kLanes;
  constexpr int kGroups = kWarps * 32 / kLanes, kAtOnce = 16 / kVectorsOfLane;
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const uint32_t lanes = kLanes == 32 ? ~0u : 0xffffu << (threadIdx.x & 16);
  const int rows = item.seqlen_q * static_cast<int>(args.group.value), all_rows = rows * item.merge_heads;
  int log_shares = 0;
  while (all_rows << (log_shares + 1) <= kGroups) ++log_shares;
  const int shares = 1 << log_shares, share = group & (shares - 1);
  auto* share_outs = reinterpret_cast<float4*>(shared);                           // [kGroups][kVectors]
  auto* share_sums = reinterpret_cast<float2*>(share_outs + kGroups * kVectors);  // [kGroups]: maximum and sum
  const int64_t stride = static_cast<int64_t>(args.slot_rows) * kVectors << log_shares;

  for (int row = group >> log_shares; row < all_rows; row += kGroups >> log_shares) {
    const int heads_back = item.merge_heads - 1 - row / rows;
    const int head_row = row % rows, first_slot = item.first_slot - heads_back * args.max_slots + share;
    const int my_parts = (item.parts - share + shares - 1) >> log_shares;
    float4* from = slot_out<kHeadDim>(args, first_slot, head_row, 0) + lane;
    float max = kNoScore, sum = 0.0f;  // of all lanes' parts, and of this lane's
    float4 total[kVectorsOfLane] = {};
    for (int base = 0; base < my_parts; base += kLanes) {
      float2 part_sum = {};  // of part base + lane
      float2* const sum_from = slot_sum(args, first_slot + ((base + lane) << log_shares), head_row);
      const bool has_part = base + lane < my_parts;
      float weight = 0.0f;
      for (int first = base; first < min(base + kLanes, my_parts); first += kAtOnce) {
        const int count = min(kAtOnce, my_parts - first);
        float4 out[kAtOnce][kVectorsOfLane] = {};
        bool missing;
        do {
          if (has_part && !has_come(part_sum)) part_sum = load_relaxed(sum_from);
#pragma unroll
          for (int j = 0; j < kAtOnce; ++j)
#pragma unroll
            for (int v = 0; v < kVectorsOfLane; ++v) {
              if (j < count && !has_come(out[j][v])) out[j][v] = load_relaxed(from + j * stride + v * kLanes);
            }
          missing = has_part && !has_come(part_sum);
#pragma unroll
          for (int j = 0; j < kAtOnce; ++j)
#pragma unroll
            for (int v = 0; v < kVectorsOfLane; ++v) missing |= j < count && !has_come(out[j][v]);
        } while (__any_sync(lanes, missing));
        if (first == base) {
          float new_max = has_part ? fmaxf(max, part_sum.x) : max;
#pragma unroll
          for (int distance = 1; distance < kLanes; distance *= 2) {
            new_max = fmaxf(new_max, __shfl_xor_sync(lanes, new_max, distance));
          }
          const float factor = exp2_approx(max - new_max);
          weight = has_part ? exp2_approx(part_sum.x - new_max) : 0.0f;
          sum = sum * factor + weight * part_sum.y;
          max = new_max;
#pragma unroll
          for (float4& x : total) x = make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
          if (has_part) *sum_from = {};
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          if (j >= count) break;
          const float part_weight = __shfl_sync(lanes, weight, first - base + j, kLanes);
#pragma unroll
          for (int v = 0; v < kVectorsOfLane; ++v) {
            add(total[v], part_weight, out[j][v]);
            from[j * stride + v * kLanes] = {};
          }
        }
        from += kAtOnce * stride;
      }
    }
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2) sum += __shfl_xor_sync(lanes, sum, distance);
    if (shares > 1) {
#pragma unroll
      for (int v = 0; v < kVectorsOfLane; ++v) share_outs[group * kVectors + v * kLanes + lane] = total[v];
      if (lane == 0) share_sums[group] = make_float2(max, sum);
    } else {
      write_row<kHeadDim, kBf16>(args, item, heads_back, head_row, lane, total, max, sum);
    }
  }
  if (shares == 1) return;
  __syncthreads();
  if (share == 0 && group >> log_shares < all_rows) {
    const int row = group >> log_shares;
    float max = kNoScore, sum = 0.0f;
    for (int i = 0; i < shares; ++i) max = fmaxf(max, share_sums[group + i].x);
    float4 total[kVectorsOfLane] = {};
    for (int i = 0; i < shares; ++i) {
      const float weight = exp2_approx(share_sums[group + i].x - max);
      sum += weight * share_sums[group + i].y;
#pragma unroll
      for (int v = 0; v < kVectorsOfLane; ++v) {
        add(total[v], weight, share_outs[(group + i) * kVectors + v * kLanes + lane]);
      }
    }
    write_row<kHeadDim, kBf16>(args, item, item.merge_heads - 1 - row / rows, row % rows, lane, total, max, sum);
  }
  __syncthreads();  // shared memory may be used again
}

}  // namespace onepass::hopper_decode
