// Many packed rows in a tile: what counts is to keep the tensor cores busy.
//
// Four warps own 32 rows each (16 where the output takes more than half of the registers): every fragment of K and V
// that is read from shared memory serves two products. Q stays in shared memory, the output and the scores in
// registers. The blocks of keys run from the last to the first; with two stages one barrier a block suffices, with one
// there are two.
#pragma once

#include "attention/cuda/portable/prefill_warp.cuh"

namespace onepass::portable {

// Asynchronous; by one thread.
__device__ inline void copy_item(WorkItem& destination, const WorkItem& source) {
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(WorkItem)); i += 16) {
    cp_async_16(shared_address(&destination) + i, reinterpret_cast<const char*>(&source) + i);
  }
}

template <typename T, int kDim, int kDimV, int kRowTiles>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) prefill_kernel(const __grid_constant__ KernelParams p) {
  using Tile = PrefillTile<kDim, kDimV, kRowTiles>;
  extern __shared__ __align__(1024) char shared[];
  auto& control = *reinterpret_cast<typename Tile::Control*>(shared + Tile::kTileBytes);
  if (static_cast<int>(blockIdx.x) >= p.header->num_items) return;
  if (threadIdx.x == 0) {
    control.count = p.header->num_items;
    control.items[0] = p.items[blockIdx.x];
  }
  __syncthreads();
  PrefillWarp<T, kDim, kDimV, kRowTiles> warp(p, control.views[threadIdx.x / 32], shared);
  warp.load_first(control.items[0]);
  warp.load_queries(control.items[0]);
  for (int current = 0;; current = current == 2 ? 0 : current + 1) {
    const int after = current == 2 ? 0 : current + 1;
    const WorkItem& item = control.items[current];
    const int next = take_ticket(p, control.count);
    const auto announce = [&] {
      if (threadIdx.x == 0) {
        control.numbers[current] = next;
        if (next < control.count) copy_item(control.items[after], p.items[next]);
      }
      cp_async_commit();
    };
    const auto has_next = [&] { return control.numbers[current] < control.count; };
    const auto load_next = [&] {
      if (has_next()) warp.load_first(control.items[after]);
    };
    const auto load_next_queries = [&] {
      if (has_next()) warp.load_queries(control.items[after]);
    };
    warp.attend(item, announce, load_next, load_next_queries);
    warp.store(item);
    if (item.parts > 1) arrive_and_merge<T, kDimV>(p, item, &control.last);
    if (!has_next()) break;
  }
  leave_tickets(p, control.count);
}

}  // namespace onepass::portable
