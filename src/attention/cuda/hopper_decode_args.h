// What a launch of the decode kernel is given; nothing in it depends on the lengths.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "attention/cuda/hopper_decode_plan.h"

namespace onepass::hopper_decode {

inline constexpr int kWarps = 8;
inline constexpr int kMaxRows = 32;
// Measured at 32 requests of 4096 keys: 32 rows read 2,834 GB/s at head dimension 128 and 2,775 at 256, but 2,078 at
// 64; 64 rows read half of that or less, and other kernels do better.
inline constexpr int max_rows(int head_dim) { return head_dim == 64 ? kMaxRows / 2 : kMaxRows; }
inline constexpr int kMaxSplits = 256;

// Up to so many blocks of a worker's, 128 bytes are what the L2 cache should fetch at once, beyond it 256: 13.9 us
// instead of 14.6 at 4 x 2,048 (16 blocks), 45.2 of 45.6 at 8 x 4,096 (64), but 356 of 353 at 32 x 8,192 (512).
inline constexpr int kNearBlocks = 96;
// With more blocks than the first, up to the second, a worker takes keys by 16, so that the first are computed with
// while others are on their way: 13.6 us instead of 14.1 at 4 x 2,048. (4 blocks, at 1 x 1,024: 6.04 instead of 5.81.)
inline constexpr int kTooFewBlocks = 4;
inline constexpr int kShortBlocks = 16;

struct BoxMaps {
  CUtensorMap k;
  CUtensorMap v;
};

// Strides in elements of 16 bits (out: of its own type).
struct RunArgs {
  BoxMaps boxes;        // [pages][rows of a page][heads][head_dim]; contiguous: one page of all rows
  BoxMaps near_boxes;   // the same for workers with few keys
  BoxMaps short_boxes;  // of 16 keys, where others are of 32, for workers with fewer; none unless has_short_boxes
  bool has_short_boxes;
  int box_keys;  // rows of a box, which lie in one page; 0: no maps
  const uint16_t* q;
  const uint16_t* k;
  const uint16_t* v;
  void* out;
  float* softmax_lse;
  const int32_t* page_table;  // null: contiguous
  const float* sinks;
  const Worker* workers;
  const Item* items;
  float* slots;  // partial_out [heads_abreast][slots][slot_rows][head_dim], relative to the maximum
  float* sums;   // [heads_abreast][slots][slot_rows][2]: maximum (of scores in powers of 2) and sum
  int64_t q_row_stride, q_head_stride;
  int64_t k_page_stride, k_row_stride, k_head_stride;
  int64_t v_page_stride, v_row_stride, v_head_stride;
  int64_t out_row_stride, out_head_stride;
  int64_t page_table_stride;
  int64_t total_kv_rows;
  bool rows_adjoin;  // K's and V's rows of all heads make one stretch of memory, and all heads are abreast
  Divisor page_size;
  bool out_is_float;
  int32_t batch;
  int32_t total_q;
  int32_t num_heads_kv;
  Divisor heads_abreast;
  int32_t max_slots;
  Divisor group;      // query heads of one KV head
  int32_t slot_rows;  // of query token x query head, at most
  Mask mask;
  float score_scale;  // to powers of 2; before the soft cap when there is one
  float softcap;      // 0: none
};

struct Launch {
  int blocks = 0;
  bool bf16 = false;
  bool pairs = false;  // of KV heads of dimension 64 are what `args` calls heads
};

Status launch_decode_64(const RunArgs& args, const Launch& launch, CUstream_st* stream);
Status launch_decode_128(const RunArgs& args, const Launch& launch, CUstream_st* stream);
Status launch_decode_256(const RunArgs& args, const Launch& launch, CUstream_st* stream);

}  // namespace onepass::hopper_decode
