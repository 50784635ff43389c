// How a decode batch is cut into work: written into device memory by plan(), followed by every run().
//
// The keys of a request are cut into blocks of 32, on a grid that begins at key 0. A tile is the query rows of one KV head of one
// request with the blocks that any of its rows sees. All tiles' blocks in one line (request, KV head, block) are cut into
// one stretch a worker, equal to the block; a worker is a thread block. What a worker has of one tile is an item. A tile in several items has a slot for each part's result;
// the slots of one tile follow one another.
#pragma once

#include <cstdint>

#include "attention/attention_params.h"
#include "base/status.h"

struct CUstream_st;

namespace onepass::hopper_decode {

inline constexpr int kBlockKeys = 32;

struct alignas(16) Item {
  int32_t request;
  int32_t head_kv;
  int32_t block_begin;  // of 32 keys; none for rows that see no key at all
  int32_t block_end;
  int32_t q_begin;  // first row of q
  int32_t seqlen_q;
  int32_t seqlen_k;
  int32_t kv_begin;    // first row of k and v (contiguous layout)
  int32_t first_slot;  // of the tile's parts
  int32_t part;
  int32_t parts;  // 1: the tile is whole, no slot is used
  int32_t unused;
  int32_t some_lo;  // keys that some of the rows see: [some_lo, some_hi)
  int32_t some_hi;
  int32_t all_lo;  // keys that all of them see: [all_lo, all_hi)
  int32_t all_hi;
};

// The first item is here so that a block that begins needs one trip to memory to know what to load.
struct alignas(16) Worker {
  Item first;
  int32_t num_items;
  int32_t next_item;  // where in the list the others are
  int32_t unused[2];
};

// Which keys a query row sees, as the kernels take it: causal and window_right are one, "no limit" is a large number.
struct Mask {
  int32_t window_left;
  int32_t window_right;
  int32_t chunk;
};

// Places in the scratch memory, and the most that each can hold. Depends on the sizes in AttentionParams alone.
struct Layout {
  int32_t workers = 0;
  int64_t max_items = 0;
  int64_t max_slots = 0;
  int32_t slot_rows = 0;  // rows of one slot
  int64_t workers_offset = 0;
  int64_t items_offset = 0;
  int64_t block_ends_offset = 0;  // [batch + 1] prefix sums over the requests of the blocks of one KV head
  int64_t part_ends_offset = 0;   // [batch + 1] the same of the parts that are known beforehand (1 a tile in automatic mode)
  int64_t slots_offset = 0;       // partial_out [slots][slot_rows][head_dim], then partial_sums [slots][slot_rows] pairs
  int64_t sums_offset = 0;
  int64_t bytes = 0;
};

Mask make_mask(const AttentionParams& params);
Layout make_layout(const AttentionParams& params, int workers, int slot_rows);

// Queues the planning kernel, which also zeroes the slots (a word that is not zero tells that it has been written).
Status launch_plan(const AttentionParams& params, const Layout& layout, void* scratch, CUstream_st* stream);

#ifdef __CUDACC__
// The keys that the query at position p sees: [lo, hi], empty when hi < lo. Both only grow with p.
struct KeyRange {
  int lo;
  int hi;
};

__device__ __forceinline__ KeyRange visible_keys(const Mask& mask, int p, int seqlen_k) {
  KeyRange range;
  range.lo = max(0, p - mask.window_left);
  range.hi = min(seqlen_k - 1, p + mask.window_right);
  if (mask.chunk > 0) {
    const int chunk = p >= 0 ? p / mask.chunk : -1;  // no key has a negative index: which chunk does not matter
    range.lo = max(range.lo, chunk * mask.chunk);
    range.hi = min(range.hi, chunk * mask.chunk + mask.chunk - 1);
  }
  return range;
}
#endif

}  // namespace onepass::hopper_decode
