// The side of the decode kernel that talks to memory: each team of warps copies its own chunks of 16 keys into a ring of
// its own in shared memory, so that no team ever waits for another's data.
#pragma once

#include "attention/cuda/hopper_decode_args.h"
#include "attention/cuda/hopper_decode_ptx.cuh"

namespace onepass::hopper_decode {

// A unit of the ring is 16 rows of K or of V, 64 or 128 numbers of each; head dimension 256 takes two units for each.
// Rows are swizzled: 16-byte chunk c of row r lies at chunk c ^ (r % 8), for ldmatrix without bank conflicts.
template <int kHeadDim, int kTeamWarps>
struct Ring {
  static constexpr int kUnitDims = kHeadDim < 128 ? kHeadDim : 128;
  static constexpr int kUnitsOfRow = kHeadDim / kUnitDims;
  static constexpr int kUnitsOfChunk = 2 * kUnitsOfRow;  // K, then V
  static constexpr int kRowBytes = 2 * kUnitDims;
  static constexpr int kUnitBytes = kChunkKeys * kRowBytes;
  static constexpr int kTeams = kWarps / kTeamWarps;
  // 24 KB a warp, 192 KB a thread block: an SM's share of the bandwidth, 23 KB a microsecond, times the latency of memory, and
  // as much again several times, so that memory has work while warps meet at the end of an item.
  static constexpr int kUnits = kTeamWarps * 24 * 1024 / kUnitBytes;
  static constexpr int kBytes = kUnits * kUnitBytes;

  static __device__ __forceinline__ int team() { return threadIdx.x / (32 * kTeamWarps); }
  static __device__ __forceinline__ void sync_team() {
    if constexpr (kTeamWarps == 1) {
      __syncwarp();
    } else {
      sync_threads(1 + team(), 32 * kTeamWarps);
    }
  }
};

__device__ __forceinline__ Item load_item(const Item* address) {
  Item item;
  const int4* from = reinterpret_cast<const int4*>(address);
  int4* to = reinterpret_cast<int4*>(&item);
  to[0] = from[0];
  to[1] = from[1];
  to[2] = from[2];
  to[3] = from[3];
  return item;
}

__device__ __forceinline__ const Item* item_address(const RunArgs& args, const Worker& worker, int next_item, int i) {
  return i == 0 ? &worker.first : args.items + next_item + i - 1;
}

__device__ __forceinline__ int page_of(const RunArgs& args, int key) {
  return args.page_shift >= 0 ? key >> args.page_shift : key / args.page_size;
}

// Walks over a team's chunks of a worker's items ahead of the multiplication. Each warp copies its share of the rows.
template <int kHeadDim, int kTeamWarps>
class Loader {
 public:
  using R = Ring<kHeadDim, kTeamWarps>;
  static constexpr int kWarpRows = kChunkKeys / kTeamWarps;
  static constexpr int kLanesOfRow = R::kRowBytes / 16;
  static constexpr int kRowsAtOnce = 32 / kLanesOfRow;

  __device__ Loader(const RunArgs& args, const Worker& worker, int num_items, int next_item)
      : args_(args), worker_(worker), num_items_(num_items), next_item_(next_item) {
    lane_ = threadIdx.x % 32;
    first_row_ = threadIdx.x / 32 % kTeamWarps * kWarpRows;
    const int row = first_row_ + lane_ / kLanesOfRow, chunk = lane_ % kLanesOfRow;
    k_lane_ = row * args.k_row_stride + chunk * 8;
    v_lane_ = row * args.v_row_stride + chunk * 8;
    shared_lane_ = row * R::kRowBytes + (chunk ^ (row % 8)) * 16;
  }

  // Copies part `part` of the next chunk (the units of K, then those of V) to `unit`, as one group of copies.
  __device__ __forceinline__ void issue(int part, uint32_t unit) {
    if (part == 0) advance();
    if (active_) {
      const bool is_k = part < R::kUnitsOfRow;
      copy(unit, is_k ? args_.k + part * R::kUnitDims : args_.v + (part - R::kUnitsOfRow) * R::kUnitDims,
           is_k ? k_offset_ : v_offset_, is_k ? k_lane_ : v_lane_, is_k ? args_.k_row_stride : args_.v_row_stride);
    }
    commit_copies();
  }

 private:
  __device__ __forceinline__ void advance() {
    if (done_) return;
    chunk_ += R::kTeams;
    bool page_is_known = true;
    while (chunk_ >= chunk_end_) {
      if (item_ == num_items_) {
        done_ = true;
        active_ = false;
        let_next_kernel_start();  // memory will soon be idle: its prefetches may come
        return;
      }
      open(load_item(item_address(args_, worker_, next_item_, item_)));
      ++item_;
      page_is_known = false;
    }
    first_key_ = chunk_ * kChunkKeys;
    active_ = first_key_ < hi_ && first_key_ + kChunkKeys > lo_;
    // Where a page holds all 16 keys, every lane computes the place of the first; else each the place of key lane % 16.
    const int key = first_key_ + (args_.rows_scattered ? lane_ % kChunkKeys : 0);
    const bool needed = args_.rows_scattered ? key >= lo_ && key < hi_ : active_;
    int64_t slot = key + kv_begin_;
    int page = 0;
    if (args_.page_table != nullptr && needed) {
      const int index = page_of(args_, key);
      page = page_is_known ? page_ahead_ : pages_[index];
      slot = key - index * args_.page_size;
    }
    k_offset_ = needed ? page * args_.k_page_stride + slot * args_.k_row_stride + k_head_ : 0;
    v_offset_ = needed ? page * args_.v_page_stride + slot * args_.v_row_stride + v_head_ : 0;
    // The next chunk's page is asked for now, a chunk's time before it is used.
    const int key_ahead = key + R::kTeams * kChunkKeys;
    if (args_.page_table != nullptr && chunk_ + R::kTeams < chunk_end_ && key_ahead < hi_) {
      page_ahead_ = pages_[page_of(args_, key_ahead)];
    }
  }

  __device__ __forceinline__ void open(const Item& item) {
    chunk_ = item.block_begin * kChunksOfBlock + R::team();
    chunk_end_ = item.block_end * kChunksOfBlock;
    lo_ = item.some_lo;
    hi_ = item.some_hi;
    kv_begin_ = item.kv_begin;
    k_head_ = item.head_kv * args_.k_head_stride;
    v_head_ = item.head_kv * args_.v_head_stride;
    pages_ = args_.page_table + item.request * args_.page_table_stride;
  }

  __device__ __forceinline__ void copy(uint32_t unit, const uint16_t* base, int64_t offset, int64_t lane_offset,
                                       int64_t row_stride) {
    const uint32_t shared = unit + shared_lane_;
    if (!args_.rows_scattered && first_key_ >= lo_ && first_key_ + kChunkKeys <= hi_) {
      const uint16_t* source = base + offset + lane_offset;
#pragma unroll
      for (int row = 0; row < kWarpRows; row += kRowsAtOnce) {
        copy_16_async((shared ^ (row % 8 * 16)) + row * R::kRowBytes, source, true);
        source += kRowsAtOnce * row_stride;
      }
      return;
    }
#pragma unroll 2
    for (int row = 0; row < kWarpRows; row += kRowsAtOnce) {
      const int lane_row = first_row_ + row + lane_ / kLanesOfRow;
      const int key = first_key_ + lane_row;
      const uint16_t* source = args_.rows_scattered
                                   ? base + __shfl_sync(~0u, offset, lane_row) + lane_ % kLanesOfRow * 8
                                   : base + offset + lane_offset + row * row_stride;
      copy_16_async((shared ^ (row % 8 * 16)) + row * R::kRowBytes, source, key >= lo_ && key < hi_);
    }
  }

  const RunArgs& args_;
  const Worker& worker_;
  int num_items_;
  int next_item_;
  int lane_;
  int first_row_;   // of a chunk's that this warp copies
  int64_t k_lane_;  // from the unit's first row to what this lane copies first
  int64_t v_lane_;
  uint32_t shared_lane_;
  // The item.
  int item_ = 0;
  int chunk_ = 0;
  int chunk_end_ = 0;
  int lo_ = 0;  // keys that some row sees
  int hi_ = 0;
  int kv_begin_ = 0;
  int64_t k_head_ = 0;
  int64_t v_head_ = 0;
  const int32_t* pages_ = nullptr;
  int page_ahead_ = 0;
  // The chunk.
  bool done_ = false;  // all chunks have been asked for
  bool active_ = false;  // it has visible keys
  int first_key_ = 0;
  int64_t k_offset_ = 0;
  int64_t v_offset_ = 0;
};

// Asks for the worker's first chunks to be brought into the L2 cache, while the kernels before this one still run. What
// is read here may be out of date: every number is checked, and nothing but the prefetch depends on it.
template <int kHeadDim, int kTeamWarps>
__device__ __forceinline__ void prefetch_first_chunks(const RunArgs& args, const Worker& worker) {
  using R = Ring<kHeadDim, 1>;
  if (args.total_kv_rows == 0) return;
  const int4* words = reinterpret_cast<const int4*>(&worker);
  const int4 place = load_relaxed(words);       // request, head_kv, block_begin, block_end
  const int4 lengths = load_relaxed(words + 1);  // q_begin, seqlen_q, seqlen_k, kv_begin
  if (place.x < 0 || place.x >= args.batch || place.y < 0 || place.y >= args.num_heads_kv) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 1
  for (int i = 0; i < R::kUnits / R::kUnitsOfChunk; ++i) {
    const int64_t chunk = static_cast<int64_t>(place.z) * kChunksOfBlock + warp + i * kWarps;
    const int64_t key = chunk * kChunkKeys + lane % kChunkKeys;
    if (chunk / kChunksOfBlock >= place.w || key < 0 || key >= lengths.z) continue;
    int64_t row = key + lengths.w, k_offset, v_offset;
    if (args.page_table != nullptr) {
      const int index = page_of(args, static_cast<int>(key));
      if (index >= args.page_table_stride) continue;
      const int page = load_relaxed(args.page_table + place.x * args.page_table_stride + index);
      const int64_t slot = key - static_cast<int64_t>(index) * args.page_size;
      row = static_cast<int64_t>(page) * args.page_size + slot;
      k_offset = page * args.k_page_stride + slot * args.k_row_stride;
      v_offset = page * args.v_page_stride + slot * args.v_row_stride;
    } else {
      k_offset = row * args.k_row_stride;
      v_offset = row * args.v_row_stride;
    }
    if (row < 0 || row >= args.total_kv_rows) continue;
    prefetch_to_l2(lane < kChunkKeys ? args.k + k_offset + place.y * args.k_head_stride
                                    : args.v + v_offset + place.y * args.v_head_stride,
                   2 * kHeadDim);
  }
}

}  // namespace onepass::hopper_decode
