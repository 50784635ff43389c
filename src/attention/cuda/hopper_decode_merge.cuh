// What the decode kernel does with results: of whole tiles to `out`, of parts to their slots, and the merge of the
// parts.
//
// The slots need neither flags nor fences. They are zero before, and no word that is written is zero (0 is written as
// -0), so a word tells by itself that it has come. The worker with a tile's last part merges the tile, after everything
// else it has to do; it waits for workers of lower numbers only, which have begun before it. It leaves zeros behind.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/hopper_decode_loader.cuh"

namespace onepass::hopper_decode {

// Below any score; a maximum that is still this belongs to a row that has seen no key. Finite, so that no difference is
// NaN.
inline constexpr float kNoScore = -3.0e38f;
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float not_zero(float x) { return x == 0.0f ? -0.0f : x; }
__device__ __forceinline__ bool has_come(float x) { return __float_as_uint(x) != 0; }
__device__ __forceinline__ bool has_come(float4 x) {
  return has_come(x.x) && has_come(x.y) && has_come(x.z) && has_come(x.w);
}

// Four numbers of a row's output with the row's maximum and sum.
struct Partial {
  float4 out = {0.0f, 0.0f, 0.0f, 0.0f};
  float max = kNoScore;
  float sum = 0.0f;

  __device__ __forceinline__ void scale(float factor) {
    out.x *= factor;
    out.y *= factor;
    out.z *= factor;
    out.w *= factor;
    sum *= factor;
  }
  __device__ __forceinline__ void add(float4 other, float other_max, float other_sum) {
    const float new_max = fmaxf(max, other_max);
    scale(exp2_approx(max - new_max));
    const float factor = exp2_approx(other_max - new_max);
    out.x += factor * other.x;
    out.y += factor * other.y;
    out.z += factor * other.z;
    out.w += factor * other.w;
    sum += factor * other_sum;
    max = new_max;
  }
};

// Row `row` of the item's rows (query token * group + query head), numbers d to d + 3.
template <bool kBf16>
__device__ __forceinline__ void write_result(const RunArgs& args, const Item& item, int row, int d, Partial partial) {
  const int row_token = divide(row, args.group), group = args.group.value;
  const int64_t token = item.q_begin + row_token;
  const int head = item.head_kv * group + row - row_token * group;
  if (args.sinks != nullptr && partial.sum > 0.0f) {
    partial.add({0.0f, 0.0f, 0.0f, 0.0f}, args.sinks[head] * kLog2E, 1.0f);
  }
  const float normalizer = partial.sum > 0.0f ? 1.0f / partial.sum : 0.0f;
  const float4 o = partial.out;
  const int64_t offset = token * args.out_row_stride + head * args.out_head_stride + d;
  if (args.out_is_float) {
    *reinterpret_cast<float4*>(static_cast<float*>(args.out) + offset) =
        make_float4(o.x * normalizer, o.y * normalizer, o.z * normalizer, o.w * normalizer);
  } else {
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(args.out) + offset) =
        make_uint2(pack<kBf16>(o.x * normalizer, o.y * normalizer), pack<kBf16>(o.z * normalizer, o.w * normalizer));
  }
  if (d == 0 && args.softmax_lse != nullptr) {
    args.softmax_lse[static_cast<int64_t>(head) * args.total_q + token] =
        partial.sum > 0.0f ? (partial.max + log2f(partial.sum)) * kLn2 : -INFINITY;
  }
}

template <int kHeadDim>
__device__ __forceinline__ float4* slot_out(const RunArgs& args, int slot, int row, int d) {
  return reinterpret_cast<float4*>(args.slots + (static_cast<int64_t>(slot) * args.slot_rows + row) * kHeadDim + d);
}

__device__ __forceinline__ float4* slot_sum(const RunArgs& args, int slot, int row) {
  return reinterpret_cast<float4*>(args.sums) + static_cast<int64_t>(slot) * args.slot_rows + row;
}

template <int kHeadDim>
__device__ __forceinline__ void write_part(const RunArgs& args, const Item& item, int row, int d, const Partial& p) {
  const int slot = item.first_slot + item.part;
  store_relaxed(slot_out<kHeadDim>(args, slot, row, d),
                make_float4(not_zero(p.out.x), not_zero(p.out.y), not_zero(p.out.z), not_zero(p.out.w)));
  const float sum = not_zero(p.sum);
  if (d == 0) store_relaxed(slot_sum(args, slot, row), make_float4(p.max, sum, p.max, sum));
}

// All threads of a block: merges the parts of `item`'s tile, in order. Each thread fetches its numbers of all parts at
// once into its own columns of shared memory, and those that are missing again: one trip to the L2 cache a round.
template <int kHeadDim, bool kBf16>
__device__ __forceinline__ void merge_parts(const RunArgs& args, const Item& item, uint8_t* shared, int shared_bytes) {
  constexpr int kVectors = kHeadDim / 4, kThreads = kWarps * 32;
  const int rows = item.seqlen_q * static_cast<int>(args.group.value);
  const int most = shared_bytes / (kThreads * 32);  // parts at a time
  const uint32_t mine = shared_address(shared) + threadIdx.x * 32;
  const float4* arrived = reinterpret_cast<const float4*>(shared + threadIdx.x * 32);
  for (int i = threadIdx.x; i < rows * kVectors; i += kThreads) {
    const int row = i / kVectors, d = i % kVectors * 4;
    Partial total;
    for (int part = 0; part < item.parts; part += most) {
      const int count = min(most, item.parts - part);
      float4* out = slot_out<kHeadDim>(args, item.first_slot + part, row, d);
      const float4* sum = slot_sum(args, item.first_slot + part, row);
      const int64_t out_stride = static_cast<int64_t>(args.slot_rows) * kVectors;
#pragma unroll 2
      for (int j = 0; j < count; ++j) {
        copy_16_async(mine + j * (kThreads * 32), out + j * out_stride, true);
        copy_16_async(mine + j * (kThreads * 32) + 16, sum + static_cast<int64_t>(j) * args.slot_rows, true);
      }
      bool waiting = true;
      while (waiting) {
        commit_copies();
        wait_for_copies<0>();
        waiting = false;
#pragma unroll 2
        for (int j = 0; j < count; ++j) {
          if (!has_come(arrived[j * (kThreads * 2)]) || !has_come(arrived[j * (kThreads * 2) + 1])) {
            waiting = true;
            copy_16_async(mine + j * (kThreads * 32), out + j * out_stride, true);
            copy_16_async(mine + j * (kThreads * 32) + 16, sum + static_cast<int64_t>(j) * args.slot_rows, true);
          }
        }
      }
#pragma unroll 2
      for (int j = 0; j < count; ++j) {
        const float4 part_sum = arrived[j * (kThreads * 2) + 1];
        total.add(arrived[j * (kThreads * 2)], part_sum.x, part_sum.y);
        out[j * out_stride] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      }
    }
    write_result<kBf16>(args, item, row, d, total);
  }
  __syncthreads();  // all have read the sums
  for (int i = threadIdx.x; i < rows * item.parts; i += kThreads) {
    *slot_sum(args, item.first_slot + i / rows, i % rows) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
}

}  // namespace onepass::hopper_decode
