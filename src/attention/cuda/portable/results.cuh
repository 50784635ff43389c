// Where results go: to the output, or as a part to scratch memory, from where the last thread block of a tile merges.
#pragma once

#include "attention/cuda/merge_fold.cuh"
#include "attention/cuda/portable/work_item.cuh"
#include "tensor/cuda/ptx.cuh"

namespace onepass::portable {

template <typename T>
__device__ inline void store_output(const KernelParams& p, const PackedRow& row, int d, const float4& value) {
  const int64_t at = row.token * p.out_row_stride + row.head * p.out_head_stride + d;
  if (p.out_float32) {
    *reinterpret_cast<float4*>(static_cast<float*>(p.out) + at) = value;
  } else {
    *reinterpret_cast<uint2*>(static_cast<T*>(p.out) + at) = {pack<T>(value.x, value.y), pack<T>(value.z, value.w)};
  }
}

__device__ inline void store_lse(const KernelParams& p, const PackedRow& row, float lse) {
  if (p.softmax_lse != nullptr) p.softmax_lse[int64_t{row.head} * p.total_q + row.token] = lse;
}

// Elements d .. d + 3 of a row whose parts are all merged.
template <typename T>
__device__ inline void finish_row(const KernelParams& p, const WorkItem& item, int r, int d, float4 merged,
                                  Fold state) {
  const PackedRow row(p, item, r);
  const float factor = state.finish(p.sinks, row.head);
  merged = {merged.x * factor, merged.y * factor, merged.z * factor, merged.w * factor};
  store_output<T>(p, row, d, merged);
  if (d == 0) store_lse(p, row, state.lse());
}

template <int kDimV>
__device__ inline float4* partial_out(const KernelParams& p, int slot, int row, int d) {
  return reinterpret_cast<float4*>(p.partial_out + (int64_t{slot} * p.tile_rows + row) * kDimV + d);
}

__device__ inline float* partial_lse(const KernelParams& p, int slot, int row) {
  return p.partial_lse + int64_t{slot} * p.tile_rows + row;
}

// After all threads wrote the item's part: merges the tile's parts if they are all there now.
template <typename T, int kDimV>
__device__ inline void arrive_and_merge(const KernelParams& p, const WorkItem& item, int* shared_last) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int* const arrivals = p.arrivals + item.first_slot;
    const bool last = atomicAdd(arrivals, 1) == item.parts - 1;
    if (last) *arrivals = 0;
    *shared_last = last;
  }
  __syncthreads();
  if (*shared_last == 0) return;
  __threadfence();
  for (int i = threadIdx.x; i < item.rows * kDimV / 4; i += kThreads) {
    const int row = i / (kDimV / 4), d = 4 * (i % (kDimV / 4));
    Fold state;
    float4 merged{};
#pragma unroll 4
    for (int part = 0; part < item.parts; ++part) {
      const int slot = item.first_slot + part * p.num_heads_kv;
      const float lse = __ldcg(partial_lse(p, slot, row));
      const float4 out = __ldcg(partial_out<kDimV>(p, slot, row, d));
      fold(merged, out, state.add(lse));
    }
    finish_row<T>(p, item, row, d, merged, state);
  }
}

}  // namespace onepass::portable
