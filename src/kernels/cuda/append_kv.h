// New keys and values into a KV cache behind those that it holds, as flash_attn_with_kvcache takes them: with rotation
// by tables, for the queries too. Where each goes is computed on the device, from the lengths there.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "tensor/dtype.h"

struct CUstream_st;

namespace onepass {

// Strides are in elements; that of the last dimension is 1. All pointers are device memory, those of heads 16-byte
// aligned. Three parts, each of which may be left out: lengths (outputs null), keys and values (k_new null), queries.
struct AppendKvParams {
  DType dtype = DType::kBF16;  // of everything: float16 or bfloat16
  int batch = 0;
  int num_heads = 0;
  int num_heads_kv = 0;
  int head_dim = 0;  // a multiple of 8, like head_dim_v and all strides
  int head_dim_v = 0;

  // Keys that are there: cache_seqlens[b] (left padding included), else by cu_seqlens_k, else seqlen_k each.
  const int32_t* cache_seqlens = nullptr;    // [batch]
  const int32_t* cu_seqlens_k = nullptr;     // [batch + 1]; null: request b begins at cache entry cache_batch_idx[b]
  const int32_t* cache_leftpad = nullptr;    // [batch]; null: 0
  const int32_t* cache_batch_idx = nullptr;  // [batch]; null: b
  int seqlen_k = 0;
  int entry_rows = 0;                // rows from one entry to the next, as begins_out counts
  int32_t* seqlens_k_out = nullptr;  // [batch] keys without the left padding, new ones included
  int32_t* begins_out = nullptr;     // [batch] first row of each request

  // [batch, seqlen_new, num_heads_kv, head_dim], or [total_new, num_heads_kv, head_dim] with cu_seqlens_new.
  const void* k_new = nullptr;
  const void* v_new = nullptr;
  int64_t k_new_batch_stride = 0;
  int64_t k_new_row_stride = 0;
  int64_t k_new_head_stride = 0;
  int64_t v_new_batch_stride = 0;
  int64_t v_new_row_stride = 0;
  int64_t v_new_head_stride = 0;
  const int32_t* cu_seqlens_new = nullptr;  // [batch + 1]
  int seqlen_new = 0;
  int total_new = 0;

  // Pages, or without a page_table one page of the whole capacity for each entry. New keys past the capacity are not
  // stored, nor counted.
  void* k_cache = nullptr;
  void* v_cache = nullptr;
  int64_t k_page_stride = 0;
  int64_t k_row_stride = 0;
  int64_t k_head_stride = 0;
  int64_t v_page_stride = 0;
  int64_t v_row_stride = 0;
  int64_t v_head_stride = 0;
  const int32_t* page_table = nullptr;
  int64_t page_table_stride = 0;
  int page_size = 0;
  int pages_per_request = 0;

  // New key i is rotated by row rotary_seqlens[b] + i of the tables (cache_seqlens[b] + i when null); a row past their
  // end gives NaN.
  const void* rotary_cos = nullptr;  // [rotary_rows, rotary_dim / 2]
  const void* rotary_sin = nullptr;
  const int32_t* rotary_seqlens = nullptr;
  int rotary_rows = 0;
  int rotary_dim = 0;  // a multiple of 16; 0: no rotation
  bool rotary_interleaved = false;

  // [batch, seqlen_q, num_heads, head_dim], or [total_q, num_heads, head_dim] with cu_seqlens_q. Query i is rotated
  // like new key i, or, unless rotate_queries_by_row, like new key 0.
  bool rotate_queries_by_row = false;
  const void* q = nullptr;
  void* q_out = nullptr;  // [total_q, num_heads, head_dim], contiguous
  int64_t q_batch_stride = 0;
  int64_t q_row_stride = 0;
  int64_t q_head_stride = 0;
  const int32_t* cu_seqlens_q = nullptr;
  int seqlen_q = 0;
  int total_q = 0;
};

// Queues the work. The error names the field that is wrong, or is a CUDA error.
Status run_append_kv(const AppendKvParams& params, CUstream_st* stream);

}  // namespace onepass
