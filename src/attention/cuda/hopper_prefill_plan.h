// What the prefill kernel's plan() leaves in scratch memory for run(): the tiles to compute, in an order that keeps K
// and V in the L2 cache and ends with the short ones.
//
// The requests are cut into chunks. Within a chunk, heads are taken in groups whose keys and values fit in the cache;
// within a group, the tiles go from the longest to the shortest, the heads of the group side by side. Thread blocks
// take items of the list by an atomic counter: an item is a tile, or two of one head, one from the chunk's longer half
// and one from the shorter (of one request where all have as many tiles).
#pragma once

#include <cstdint>

struct CUstream_st;

namespace onepass::hopper {

// 128 consecutive queries (or 192, as the kernel has it; fewer at the end) of one request; all heads share the entry.
struct alignas(32) PrefillEntry {
  int32_t q_row = 0;     // of the first query, in q and out
  int32_t rows = 0;      // 1 to tile_rows
  int32_t position = 0;  // of the first query: seqlen_k - seqlen_q + its index
  int32_t seqlen_k = 0;
  int32_t kv_row = 0;  // contiguous K and V: where the request begins
  int32_t request = 0;
};

struct alignas(16) PrefillChunk {
  int32_t first_item = 0;
  int32_t first_entry = 0;
  int32_t entries = 0;
  int32_t group_heads = 0;  // query heads of a group
  int32_t items = 0;        // of a head: `entries`, or half of them, rounded up, where an item is two tiles
};

constexpr int kMaxPrefillChunks = 64;

struct alignas(256) PrefillPlan {
  int32_t next_item = 0;  // the counter of items, less the number of thread blocks; 0 between runs
  int32_t finished = 0;   // thread blocks that have taken their last item; 0 between runs
  int32_t num_items = 0;
  int32_t num_chunks = 0;
  PrefillChunk chunks[kMaxPrefillChunks];
};

// Keys that a query at some position sees: first <= j < end.
struct KeyMask {
  int32_t window_left = -1;   // -1: no limit
  int32_t window_right = -1;  // -1: no limit; 0: causal
  int32_t chunk = 0;          // 0: none

#ifdef __CUDACC__
  __device__ int chunk_start(int position) const {
    int rest = position % chunk;
    if (rest < 0) rest += chunk;
    return position - rest;
  }
  __device__ int first(int position) const {
    int first = 0;
    if (window_left >= 0) first = max(first, position - window_left);
    if (chunk > 0) first = max(first, chunk_start(position));
    return first;
  }
  __device__ int end(int position, int seqlen_k) const {
    int end = seqlen_k;
    if (window_right >= 0) end = min(end, position + window_right + 1);
    if (chunk > 0) end = min(end, chunk_start(position) + chunk);
    return max(end, 0);
  }
#endif
};

struct PrefillPlanArgs {
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* cache_seqlens = nullptr;
  const int32_t* cu_seqlens_k = nullptr;  // null: paged
  int32_t batch = 0;
  int32_t tile_rows = 0;
  int32_t num_heads = 0;
  int32_t heads_per_kv = 0;
  int32_t workers = 0;      // multiprocessors, or pairs of them, that work on a tile each
  int64_t cached_keys = 0;  // how many keys (of one KV head, with their values) the L2 cache may be trusted to hold
  KeyMask mask;
  // Results.
  PrefillPlan* plan = nullptr;
  PrefillEntry* entries = nullptr;      // [most_entries]
  int32_t most_entries = 0;             // what is beyond it, for a max_seqlen_q that was not true, is left out
  int32_t* chunk_of_request = nullptr;  // [batch], used within
  int32_t* tile_of_request = nullptr;   // [batch], used within: the first
};

void launch_prefill_plan(const PrefillPlanArgs& args, CUstream_st* stream);

}  // namespace onepass::hopper
