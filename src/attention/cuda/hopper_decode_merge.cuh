// What the decode kernel does with results: of whole tiles to `out`, of parts to their slots, and the merge of the parts.
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
__device__ __forceinline__ bool has_come(float2 x) { return has_come(x.x) && has_come(x.y); }
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
  const int64_t token = item.q_begin + row / args.group;
  const int head = item.head_kv * args.group + row % args.group;
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
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(args.out) + offset) = make_uint2(
        pack<kBf16>(o.x * normalizer, o.y * normalizer), pack<kBf16>(o.z * normalizer, o.w * normalizer));
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

__device__ __forceinline__ float2* slot_sum(const RunArgs& args, int slot, int row) {
  return reinterpret_cast<float2*>(args.sums) + static_cast<int64_t>(slot) * args.slot_rows + row;
}

template <int kHeadDim>
__device__ __forceinline__ void write_part(const RunArgs& args, const Item& item, int row, int d, const Partial& p) {
  const int slot = item.first_slot + item.part;
  store_relaxed(slot_out<kHeadDim>(args, slot, row, d),
                make_float4(not_zero(p.out.x), not_zero(p.out.y), not_zero(p.out.z), not_zero(p.out.w)));
  if (d == 0) store_relaxed(slot_sum(args, slot, row), make_float2(p.max, not_zero(p.sum)));
}

// All threads of a block: merges the parts of `item`'s tile, in order.
template <int kHeadDim, bool kBf16>
__device__ __forceinline__ void merge_parts(const RunArgs& args, const Item& item) {
  const int rows = item.seqlen_q * args.group;
  constexpr int kVectors = kHeadDim / 4;
  constexpr int kAtOnce = 18;  // loads in flight: one sequence alone is cut into so many parts, of eight KV heads on 132 SMs
  const int64_t out_stride = static_cast<int64_t>(args.slot_rows) * kVectors;
  for (int i = threadIdx.x; i < rows * kVectors; i += kWarps * 32) {
    const int row = i / kVectors, d = i % kVectors * 4;
    float4* out_address = slot_out<kHeadDim>(args, item.first_slot, row, d);
    const float2* sum_address = slot_sum(args, item.first_slot, row);
    Partial total;
    for (int part = 0; part < item.parts; part += kAtOnce) {
      float4 out[kAtOnce];
      float2 sum[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (part + j < item.parts) {
          out[j] = load_relaxed(out_address + j * out_stride);
          sum[j] = load_relaxed(sum_address + j * args.slot_rows);
        }
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (part + j >= item.parts) break;
        while (!has_come(out[j])) out[j] = load_relaxed(out_address);
        while (!has_come(sum[j])) sum[j] = load_relaxed(sum_address);
        *out_address = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        total.add(out[j], sum[j].x, sum[j].y);
        out_address += out_stride;
        sum_address += args.slot_rows;
      }
    }
    write_result<kBf16>(args, item, row, d, total);
  }
  __syncthreads();  // all have read the sums
  for (int i = threadIdx.x; i < rows * item.parts; i += kWarps * 32) {
    *slot_sum(args, item.first_slot + i / rows, i % rows) = make_float2(0.0f, 0.0f);
  }
}

}  // namespace onepass::hopper_decode
