// How a decode batch is cut into work: written into device memory by plan(), followed by every run().
//
// The keys of a request are cut into blocks of 32, on a grid that begins at key 0. KV heads are attended to side by
// side, `heads_abreast` at a time, so that what lies together in memory is read at the same time. A tile is the query
// rows of that many KV heads of one request with the blocks that any of its rows sees. All tiles' blocks in one line
// (request, KV heads, block) are cut into one stretch a worker, equal to the block; a worker is a thread block for each
// of the heads. What a worker has of one tile is an item. A tile in several items has a slot for each part's result;
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
  int32_t head_kv;      // the first of those abreast
  int32_t block_begin;  // of 32 keys; none for rows that see no key at all
  int32_t block_end;
  int32_t q_begin;  // first row of q
  int32_t seqlen_q;
  int32_t seqlen_k;
  int32_t kv_begin;    // first row of k and v (contiguous layout)
  int32_t first_slot;  // of the tile's parts, one for all heads abreast
  int32_t part;
  int32_t parts;        // 1: the tile is whole, no slot is used
  int32_t merge_heads;  // of those abreast, whose parts one block merges: 1 or 2
  int32_t some_lo;      // keys that some of the rows see: [some_lo, some_hi)
  int32_t some_hi;
  int32_t all_lo;  // keys that all of them see: [all_lo, all_hi)
  int32_t all_hi;
};

// The first item is here so that a block that begins needs one trip to memory to know what to load.
// Neither does it look up its first pages before it asks for them: they are known by the plan, as far as the first
// kHintKeys keys, 16 at a time, go. They are hints: run() may have another page table.
inline constexpr int kHintKeys = 256;

struct alignas(16) Worker {
  Item first;
  int32_t num_items;
  int32_t next_item;  // where in the list the others are
  int32_t blocks;     // of its stretch
  int32_t unused;
  int32_t pages[kHintKeys / 16];
};

// n / value for 0 <= n < 2^31 in two instructions: (n * magic) >> shift.
struct Divisor {
  uint32_t value = 1;
  uint32_t magic = 0;
  uint32_t shift = 0;
};

Divisor make_divisor(int value);

// Which keys a query row sees, as the kernels take it: causal and window_right are one, "no limit" is a large number.
struct Mask {
  int32_t window_left;
  int32_t window_right;
  bool chunked;
  Divisor chunk;
};

// Places in the scratch memory, and the most that each can hold. Depends on the sizes in AttentionParams alone.
struct Layout {
  int32_t workers = 0;
  int32_t heads_abreast = 1;
  int32_t multiprocessors = 0;
  int64_t max_items = 0;
  int64_t max_parts = 0;  // of a tile
  int64_t max_slots = 0;  // of one head of those abreast
  int32_t slot_rows = 0;  // rows of one slot
  int64_t workers_offset = 0;
  int64_t items_offset = 0;
  int64_t block_ends_offset = 0;  // [batch + 1] prefix sums over the requests of the blocks of one tile
  int64_t part_ends_offset =
      0;  // [batch + 1] the same of the parts that are known beforehand (1 a tile in automatic mode)
  int64_t slots_offset =
      0;  // partial_out [heads_abreast][slots][slot_rows][head_dim], then [heads_abreast][slots][slot_rows][2]
  int64_t sums_offset = 0;
  int64_t bytes = 0;
};

Mask make_mask(const AttentionParams& params);
Layout make_layout(const AttentionParams& params, int multiprocessors, int slot_rows);

// Queues the planning kernel, which also zeroes the slots (a word that is not zero tells that it has been written).
Status launch_plan(const AttentionParams& params, const Layout& layout, void* scratch, CUstream_st* stream);

#ifdef __CUDACC__
__device__ __forceinline__ int divide(int n, const Divisor& divisor) {
  return static_cast<int>((static_cast<uint64_t>(static_cast<uint32_t>(n)) * divisor.magic) >> divisor.shift);
}

// The keys that the query at position p sees: [lo, hi], empty when hi < lo. Both only grow with p.
struct KeyRange {
  int lo;
  int hi;
};

__device__ __forceinline__ KeyRange visible_keys(const Mask& mask, int p, int seqlen_k) {
  KeyRange range;
  range.lo = max(0, p - mask.window_left);
  range.hi = min(seqlen_k - 1, p + mask.window_right);
  if (mask.chunked) {
    const int size = mask.chunk.value;
    const int begin =
        p >= 0 ? divide(p, mask.chunk) * size : -size;  // no key has a negative index: which chunk does not matter
    range.lo = max(range.lo, begin);
    range.hi = min(range.hi, begin + size - 1);
  }
  return range;
}
#endif

}  // namespace onepass::hopper_decode
