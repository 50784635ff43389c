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

// What a row's output, relative to `max`, is to be multiplied by in the end. Row `row` of the item's rows is query
// token * group + query head. The sink counts once, here; one thread a row writes the LSE.
__device__ __forceinline__ float normalizer(const RunArgs& args, const Item& item, int row, float max, float sum,
                                            bool write_lse) {
  const int row_token = divide(row, args.group), group = args.group.value;
  const int head = item.head_kv * group + row - row_token * group;
  float factor = 1.0f;
  if (args.sinks != nullptr && sum > 0.0f) {
    const float sink = args.sinks[head] * kLog2E, new_max = fmaxf(max, sink);
    factor = exp2_approx(max - new_max);
    sum = sum * factor + exp2_approx(sink - new_max);
    max = new_max;
  }
  if (write_lse && args.softmax_lse != nullptr) {
    args.softmax_lse[static_cast<int64_t>(head) * args.total_q + item.q_begin + row_token] =
        sum > 0.0f ? (max + log2f(sum)) * kLn2 : -INFINITY;
  }
  return sum > 0.0f ? __fdividef(factor, sum) : 0.0f;
}

// Numbers d to d + 3 of a row.
template <bool kBf16>
__device__ __forceinline__ void write_out(const RunArgs& args, const Item& item, int row, int d, float4 o,
                                          float factor) {
  const int row_token = divide(row, args.group), group = args.group.value;
  const int64_t token = item.q_begin + row_token;
  const int head = item.head_kv * group + row - row_token * group;
  const int64_t offset = token * args.out_row_stride + head * args.out_head_stride + d;
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

// All threads of a block: merges the parts of `item`'s tile. A thread's chain of instructions is what takes time here
// (one every five clocks), so the parts' weights are found by a warp a row with a lane a part, and the output's sums
// are shared out among all threads, by parts too where the rows are few.
template <int kHeadDim, bool kBf16>
__device__ __forceinline__ void merge_parts(const RunArgs& args, const Item& item, uint8_t* shared) {
  constexpr int kVectors = kHeadDim / 4, kThreads = kWarps * 32, kAtOnce = 8;
  const int rows = item.seqlen_q * static_cast<int>(args.group.value), parts = item.parts;
  const int lane = threadIdx.x % 32, vectors = rows * kVectors, shares = max(1, kThreads / vectors);
  auto* share_sums = reinterpret_cast<float4*>(shared);             // [kThreads]
  auto* factors = reinterpret_cast<float*>(share_sums + kThreads);  // [kMaxRows]
  auto* weights = reinterpret_cast<float2*>(factors + kMaxRows);    // [rows][parts]: maximum, then weight; sum

  // A thread sums up every `shares`th part of its vectors.
  const int share = shares == 1 ? 0 : threadIdx.x / vectors, first_vector = threadIdx.x - share * vectors;
  const int64_t stride = static_cast<int64_t>(args.slot_rows) * kVectors * shares;
  float4 out[kAtOnce] = {};
  // Asks for those of the next `count` parts that have not come yet, all at once.
  const auto ask = [&](const float4* from, int count) {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (j < count && !has_come(out[j])) out[j] = load_relaxed(from + j * stride);
    }
  };
  const auto missing = [&](int count) {
    bool any = false;
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) any |= j < count && !has_come(out[j]);
    return any;
  };
  const int my_parts = share < shares && first_vector < vectors ? (parts - share + shares - 1) / shares : 0;
  float4* from = slot_out<kHeadDim>(args, item.first_slot + share, 0, 0) + first_vector;
  ask(from, my_parts);  // they may come while the weights are found

  for (int row = threadIdx.x / 32; row < rows; row += kWarps) {
    float2* row_weights = weights + row * parts;
    float max = kNoScore, sum = 0.0f;
    for (int part = lane; part < parts; part += 32) {
      float2* address = slot_sum(args, item.first_slot + part, row);
      float2 part_sum = load_relaxed(address);
      while (!has_come(part_sum)) part_sum = load_relaxed(address);
      *address = make_float2(0.0f, 0.0f);
      row_weights[part] = part_sum;
      max = fmaxf(max, part_sum.x);
    }
    ask(from, my_parts);
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, distance));
    for (int part = lane; part < parts; part += 32) {
      const float weight = exp2_approx(row_weights[part].x - max);
      row_weights[part].x = weight;
      sum += weight * row_weights[part].y;
    }
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    const float factor = normalizer(args, item, row, max, sum, lane == 0);
    if (lane == 0) factors[row] = factor;
  }
  __syncthreads();

  for (int vector = first_vector; vector < vectors; vector += kThreads) {
    const int row = vector / kVectors, d = vector % kVectors * 4;
    const float2* row_weights = weights + row * parts + share;
    float4 total = {};
    from = slot_out<kHeadDim>(args, item.first_slot + share, 0, 0) + vector;
    for (int done = 0; done < my_parts; done += kAtOnce) {
      const int count = my_parts - done;
      while (missing(count)) ask(from, count);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (j < count) {
          add(total, row_weights[(done + j) * shares].x, out[j]);
          from[j * stride] = {};
          out[j] = {};
        }
      }
      from += kAtOnce * stride;
    }
    if (shares > 1) {
      share_sums[threadIdx.x] = total;
      break;
    }
    write_out<kBf16>(args, item, row, d, total, factors[row]);
  }
  if (shares > 1) {
    __syncthreads();
    if (threadIdx.x < vectors) {
      float4 total = share_sums[threadIdx.x];
      for (int other = 1; other < shares; ++other) add(total, 1.0f, share_sums[threadIdx.x + other * vectors]);
      const int row = threadIdx.x / kVectors;
      write_out<kBf16>(args, item, row, threadIdx.x % kVectors * 4, total, factors[row]);
    }
  }
  __syncthreads();  // shared memory may be used again
}

}  // namespace onepass::hopper_decode
