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

// Strides in elements of 16 bits (out: of its own type).
struct RunArgs {
  CUtensorMap k_map;  // [pages][rows of a page][heads][head_dim]; contiguous: one page of all rows
  CUtensorMap v_map;
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
};

Status launch_decode_64(const RunArgs& args, const Launch& launch, CUstream_st* stream);
Status launch_decode_128(const RunArgs& args, const Launch& launch, CUstream_st* stream);
Status launch_decode_256(const RunArgs& args, const Launch& launch, CUstream_st* stream);

}  // namespace onepass::hopper_decode
