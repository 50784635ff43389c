// What a launch of the decode kernel is given; nothing in it depends on the lengths.
#pragma once

#include <cstdint>

#include "attention/cuda/hopper_decode_plan.h"

namespace onepass::hopper_decode {

inline constexpr int kWarps = 8;
inline constexpr int kChunkKeys = 16;  // the M of mma.sync; the teams of warps take turns at an item's chunks
inline constexpr int kChunksOfBlock = kBlockKeys / kChunkKeys;

// Strides in elements of 16 bits (out: of its own type).
struct RunArgs {
  const uint16_t* q;
  const uint16_t* k;
  const uint16_t* v;
  void* out;
  float* softmax_lse;
  const int32_t* page_table;  // null: contiguous
  const float* sinks;
  const Worker* workers;
  const Item* items;
  float* slots;  // partial_out [slots][slot_rows][head_dim], relative to the maximum
  float* sums;   // [slots][slot_rows]: maximum (of scores in powers of 2) and sum
  int64_t q_row_stride, q_head_stride;
  int64_t k_page_stride, k_row_stride, k_head_stride;
  int64_t v_page_stride, v_row_stride, v_head_stride;
  int64_t out_row_stride, out_head_stride;
  int64_t page_table_stride;
  int64_t total_kv_rows;
  int32_t page_size;
  int32_t page_shift;  // log2(page_size), or -1
  bool rows_scattered;  // 16 neighbouring keys may lie in several pages
  bool out_is_float;
  int32_t batch;
  int32_t total_q;
  int32_t num_heads_kv;
  int32_t group;       // query heads of one KV head
  int32_t slot_rows;   // of query token x query head, at most
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
