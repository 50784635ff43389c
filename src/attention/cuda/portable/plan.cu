// The plan: which rows and keys make a work item. One thread block, on the device, because the lengths are only known
// there.
//
//   1. Every request's packed rows are cut into tiles; a tile's keys are those that one of its rows sees.
//   2. The keys of a tile are cut into parts, at multiples of a number of keys that is chosen so that the items of all
//      KV heads keep every thread block of the GPU busy: as few as possible, as a part costs its start and the merge.
//   3. The items (a tile, or a part of one, and a KV head) are written in the order of work.
#include <cuda_runtime.h>

#include "attention/cuda/portable/launch.h"
#include "attention/cuda/portable/masks.cuh"

namespace onepass::portable {
namespace {

constexpr int kPlanThreads = 1024;
constexpr int kPlanWarps = kPlanThreads / 32;

__device__ int sum_of_warp(int x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(kFullWarp, x, d);
  return x;
}
__device__ int max_of_warp(int x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = max(x, __shfl_xor_sync(kFullWarp, x, d));
  return x;
}

// Over all threads of the block; `scratch` holds 2 * kPlanWarps numbers.
__device__ int sum_of_block(int x, int* scratch) {
  x = sum_of_warp(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  return sum_of_warp(scratch[threadIdx.x % 32]);
}
__device__ int max_of_block(int x, int* scratch) {
  x = max_of_warp(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  return max_of_warp(scratch[threadIdx.x % 32]);
}

__device__ int scan_of_warp(int x) {
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int before = __shfl_up_sync(kFullWarp, x, d);
    if (threadIdx.x % 32 >= d) x += before;
  }
  return x;
}

// The sum of x over the threads before this one; adds the whole sum to `total`.
__device__ int exclusive_scan(int x, int& total, int* scratch) {
  const int inclusive = scan_of_warp(x);
  __syncthreads();
  if (threadIdx.x % 32 == 31) scratch[threadIdx.x / 32] = inclusive;
  __syncthreads();
  const int warps = scan_of_warp(scratch[threadIdx.x % 32]);
  const int before = __shfl_sync(kFullWarp, warps, max(int(threadIdx.x / 32) - 1, 0));
  const int start = total + (threadIdx.x >= 32 ? before : 0) + inclusive - x;
  total += __shfl_sync(kFullWarp, warps, 31);
  return start;
}

struct Tile {
  int request = 0;
  int first_row = 0;
  int seqlen_k = 0;
  KeyRange keys;  // in whole: of one request and all its heads

  __device__ Tile(const KernelParams& p, int number) {
    int low = 0, high = p.batch;  // the last request whose first tile is not after `number`
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (p.tile_begin[middle] <= number ? low : high) = middle;
    }
    request = low;
    const int q_begin = p.cu_seqlens_q[request];
    const int seqlen_q = p.cu_seqlens_q[request + 1] - q_begin;
    seqlen_k = p.cache_seqlens[request];
    first_row = (p.tile_begin[request + 1] - 1 - number) * p.tile_rows;
    const int rows = seqlen_q * static_cast<int>(p.group.divisor);
    const int last_row = min(first_row + p.tile_rows, rows) - 1;
    const KeyRange first = visible_keys(p, seqlen_k - seqlen_q + divide(first_row, p.group), seqlen_k);
    const KeyRange last = visible_keys(p, seqlen_k - seqlen_q + divide(last_row, p.group), seqlen_k);
    keys = {first.begin, last.end};
    if (keys.end <= keys.begin) keys = {0, 0};
  }

  __device__ int blocks() const { return (keys.end + kBlockKeys - 1) / kBlockKeys - keys.begin / kBlockKeys; }
};

// How tiles are cut: at multiples of `keys` keys, or into at most `count` parts.
struct Cut {
  int keys = 0;   // 0: not
  int count = 0;  // 0: not

  // Of one tile.
  __device__ int keys_of(const Tile& tile) const {
    if (count > 1) return max(1, (tile.seqlen_k + count * kBlockKeys - 1) / (count * kBlockKeys)) * kBlockKeys;
    return keys > 0 ? keys : max(tile.keys.end, 1);
  }
  __device__ int parts_of(const Tile& tile) const {
    if (tile.keys.end == 0) return 1;
    const int each = keys_of(tile);
    return (tile.keys.end - 1) / each - tile.keys.begin / each + 1;
  }
};

// Units that are parts of tiles.
__device__ int count_parts(const KernelParams& p, int tiles, const Cut& cut, int* scratch) {
  int parts = 0;
  for (int t = threadIdx.x; t < tiles; t += kPlanThreads) {
    const int n = cut.parts_of(Tile(p, t));
    if (n > 1) parts += n;
  }
  return sum_of_block(parts, scratch);
}

// The cut that is expected to end first. A block of keys is the unit of time; an item costs kStart blocks more than its
// keys, and half a block more for every part that the merge reads.
__device__ Cut choose_cut(const KernelParams& p, int tiles, int* scratch) {
  constexpr int kStart = 2;
  int longest = 0, blocks = 0;
  for (int t = threadIdx.x; t < tiles; t += kPlanThreads) {
    const int n = Tile(p, t).blocks();
    p.tile_units[t] = n;  // for the warps below
    longest = max(longest, n);
    blocks += n;
  }
  longest = max_of_block(longest, scratch);
  blocks = sum_of_block(blocks, scratch);
  const int64_t items = int64_t{tiles} * p.num_heads_kv;
  const int64_t work = (int64_t{blocks} + kStart * tiles) * p.num_heads_kv;
  // Tiles of like length fill the GPU already, or nothing is gained by cutting.
  if (longest <= 1 || (items >= p.slots && longest * int64_t{p.slots} <= work)) return {};
  if (p.tile_rows > 16 && items * 5 >= int64_t{p.slots} * 4) return {};

  // Each warp judges one number of parts of the longest tile.
  const int warp = threadIdx.x / 32;
  // 1 to 8, then 10, 12, 14, 16, 20, ... 512
  const int count = warp < 8 ? warp + 1 : (warp % 4 + 5) << (warp / 4 - 1);
  const int size = (longest + count - 1) / count;
  int units = 0, parts = 0;
  for (int t = threadIdx.x % 32; t < tiles; t += 32) {
    const int n = max(1, (p.tile_units[t] + size - 1) / size);
    units += n;
    if (n > 1) parts += n;
  }
  units = sum_of_warp(units);
  parts = sum_of_warp(parts);
  // Items run in waves when they are of one length, and fill the gaps of others when they are not.
  const int64_t all = int64_t{units} * p.num_heads_kv;
  const float each = static_cast<float>(blocks) / units + kStart;
  float cost = fmaxf(each * static_cast<float>((all + p.slots - 1) / p.slots), static_cast<float>(size + kStart));
  if (count > 1) cost += 2.0f + 0.5f * count;
  if (parts > p.max_part_units || (count > 1 && count > longest)) cost = 3e38f;
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    scratch[warp] = __float_as_int(cost);  // positive floats are ordered like their bits
    scratch[kPlanWarps + warp] = size;
  }
  __syncthreads();
  const int own = scratch[threadIdx.x % 32];
  int best = own;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) best = min(best, __shfl_xor_sync(kFullWarp, best, d));
  const int winner = __ffs(__ballot_sync(kFullWarp, own == best)) - 1;
  const int chosen = scratch[kPlanWarps + winner];
  __syncthreads();
  return winner == 0 ? Cut{} : Cut{.keys = chosen * kBlockKeys};
}

// Items are ordered request by request; within one the longest tiles of all heads come first and the shortest last, so
// that thread blocks end together. (Groups of heads that fit the L2 cache together, one after the other, lose more by
// their ends than they gain: 302 TFLOP/s instead of 341 at 16k causal tokens.)
__device__ void write_items(const KernelParams& p, const Cut& cut, int number, int head_kv) {
  const Tile tile(p, number);
  const int own_unit = p.tile_units[number], parts = p.tile_units[number + 1] - own_unit;
  const int first_slot = p.tile_parts[number] * p.num_heads_kv + head_kv;
  const int each = cut.keys_of(tile), first_cut = tile.keys.begin / each;
  const int q_begin = p.cu_seqlens_q[tile.request], seqlen_q = p.cu_seqlens_q[tile.request + 1] - q_begin;
  for (int part = 0; part < parts; ++part) {
    const int64_t begin = int64_t{first_cut + part} * each, end = begin + each;
    p.items[int64_t{own_unit + part} * p.num_heads_kv + head_kv] = {
        .request = tile.request,
        .head_kv = head_kv,
        .first_row = tile.first_row,
        .rows = min(p.tile_rows, seqlen_q * static_cast<int>(p.group.divisor) - tile.first_row),
        .q_begin = q_begin,
        .first_position = tile.seqlen_k - seqlen_q,
        .seqlen_k = tile.seqlen_k,
        .key_begin = static_cast<int>(max(int64_t{tile.keys.begin}, begin)),
        .key_end = static_cast<int>(min(int64_t{tile.keys.end}, end)),
        .parts = parts,
        .slot = first_slot + part * p.num_heads_kv,
        .first_slot = first_slot,
    };
  }
}

__global__ void __launch_bounds__(kPlanThreads) plan_kernel(const __grid_constant__ KernelParams p) {
  __shared__ int scratch[2 * kPlanWarps];
  // Another problem's plan may have used this memory for something else.
  for (int i = threadIdx.x; i < p.max_part_units * p.num_heads_kv; i += kPlanThreads) p.arrivals[i] = 0;
  if (threadIdx.x == 0) p.header->ticket = p.header->done = 0;

  int tiles = 0;
  for (int base = 0; base < p.batch; base += kPlanThreads) {
    const int b = base + threadIdx.x;
    const int seqlen_q = b < p.batch ? p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b] : 0;
    const int rows = seqlen_q * static_cast<int>(p.group.divisor);
    const int begin = exclusive_scan((rows + p.tile_rows - 1) / p.tile_rows, tiles, scratch);
    if (b < p.batch) p.tile_begin[b] = begin;
  }
  if (threadIdx.x == 0) p.tile_begin[p.batch] = tiles;
  __syncthreads();

  // With a fixed split size parts are spread where there is room for their results; else each tile's are computed one
  // after the other by the same thread block, with the same bits.
  Cut cut;
  if (p.split_size > 0) {
    cut.keys = p.split_size;
    if (count_parts(p, tiles, cut, scratch) > p.max_part_units) cut = {};
  } else if (p.num_splits > 1) {
    cut.count = p.num_splits;
    while (cut.count > 1 && count_parts(p, tiles, cut, scratch) > p.max_part_units) cut.count /= 2;
  } else if (p.num_splits == 0) {
    cut = choose_cut(p, tiles, scratch);
  }

  int units = 0;
  for (int base = 0; base < tiles; base += kPlanThreads) {
    const int t = base + threadIdx.x;
    const int begin = exclusive_scan(t < tiles ? cut.parts_of(Tile(p, t)) : 0, units, scratch);
    if (t < tiles) p.tile_units[t] = begin;
  }
  if (threadIdx.x == 0) p.tile_units[tiles] = units;
  __syncthreads();

  int tile_parts = 0;
  for (int base = 0; base < tiles; base += kPlanThreads) {
    const int t = base + threadIdx.x;
    const int parts = t < tiles ? p.tile_units[t + 1] - p.tile_units[t] : 0;
    const int begin = exclusive_scan(parts > 1 ? parts : 0, tile_parts, scratch);
    if (t < tiles) p.tile_parts[t] = begin;
  }
  if (threadIdx.x == 0) p.header->num_items = units * p.num_heads_kv;
  __syncthreads();
  for (int i = threadIdx.x; i < tiles * p.num_heads_kv; i += kPlanThreads) {
    write_items(p, cut, i / p.num_heads_kv, i % p.num_heads_kv);
  }
}

}  // namespace

cudaError_t launch_plan(const KernelParams& p, cudaStream_t stream) {
  plan_kernel<<<1, kPlanThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace onepass::portable
