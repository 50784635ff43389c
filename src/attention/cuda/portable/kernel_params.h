// What the portable kernels take: the numbers of AttentionParams, ready for device code, and where the plan lies.
#pragma once

#include <cstdint>

#include "attention/cuda/fast_divide.h"

namespace onepass::portable {

// Keys of one block, in every kernel: one step of the loop over K and V.
inline constexpr int kBlockKeys = 64;
inline constexpr int kWarps = 4;
inline constexpr int kThreads = 32 * kWarps;
// Blocks of threads per SM that the tiles are made for, in registers and shared memory.
inline constexpr int kBlocksPerSm = 2;

// A piece of work, as the plan writes it: some packed rows of one request and KV head over some of its keys. Packed row
// r of a request is its query row r / group, in head r % group of the KV head's group. Copied 16 bytes at a time.
struct alignas(16) WorkItem {
  int request = 0;
  int head_kv = 0;
  int first_row = 0;       // packed
  int rows = 0;            // of them, at least 1
  int q_begin = 0;         // row of q where the request begins
  int first_position = 0;  // of the request's first query token
  int seqlen_k = 0;
  int key_begin = 0;  // [key_begin, key_end) holds every key that one of the rows sees, of this part
  int key_end = 0;
  int parts = 1;       // of its tile; 1: the whole tile
  int slot = 0;        // of this part's result
  int first_slot = 0;  // of the tile's first part; those between are num_heads_kv apart
};
static_assert(sizeof(WorkItem) == 48);

// At the front of the scratch memory.
struct PlanHeader {
  int num_items = 0;
  int ticket = 0;  // items taken beyond the first of each thread block; zero between launches
  int done = 0;    // thread blocks that took their last; zero between launches
};

struct KernelParams {
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  void* out = nullptr;
  float* softmax_lse = nullptr;
  bool out_float32 = false;
  int64_t q_row_stride = 0, q_head_stride = 0;
  int64_t k_page_stride = 0, k_row_stride = 0, k_head_stride = 0;
  int64_t v_page_stride = 0, v_row_stride = 0, v_head_stride = 0;
  int64_t out_row_stride = 0, out_head_stride = 0;

  int batch = 0;
  int total_q = 0;
  int num_heads_kv = 0;
  FastDivide group;            // query heads of one KV head
  FastDivide page_size;        // of contiguous requests: 2^31 - 1, one page
  bool rows_together = false;  // 16 keys from a multiple of 16 on, counted from any split's first, lie in one page
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* cache_seqlens = nullptr;
  const int32_t* cu_seqlens_k = nullptr;
  const int32_t* page_table = nullptr;  // null: contiguous
  int64_t page_table_stride = 0;

  float softmax_scale = 1.0f;
  float softcap = 0.0f;
  float max_growth = 0.0f;  // of the running maximum before prefill_kernel rescales its output, as a power of 2
  bool causal = false;
  bool local = false;  // there is a window or a chunk
  int window_left = -1, window_right = -1;
  int attention_chunk = 0;
  const float* sinks = nullptr;
  const float* q_descale = nullptr;
  const float* k_descale = nullptr;
  const float* v_descale = nullptr;
  int num_splits = 0;
  int split_size = 0;

  // The plan, and its sizes.
  int tile_rows = 0;       // packed rows of a tile
  int slots = 0;           // thread blocks that the plan is made for
  int max_part_units = 0;  // units that may be parts: num_heads_kv partial results each
  PlanHeader* header = nullptr;
  int* arrivals = nullptr;       // [max_part_units * num_heads_kv]; zero between launches
  WorkItem* items = nullptr;     // in the order of work
  int* tile_begin = nullptr;     // [batch + 1] first tile of each request
  int* tile_units = nullptr;     // [tiles + 1] number of a tile's first part among the parts of all
  int* tile_parts = nullptr;     // [tiles] the same among those of the tiles that are cut
  float* partial_lse = nullptr;  // [max_part_units * num_heads_kv, tile_rows]
  float* partial_out = nullptr;  // [max_part_units * num_heads_kv, tile_rows, head_dim_v]
  float* fold_state = nullptr;   // [slots, ...] running merges of decode_kernel
};

}  // namespace onepass::portable
