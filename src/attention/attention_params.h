// The one parameter struct of every attention kernel, on every device. Names and meaning follow FlashAttention-3's
// flash_attn_with_kvcache (hopper/flash_attn_interface.py of Dao-AILab/flash-attention).
//
// Semantics, everywhere:
//  - Query row i of a request with seqlen_q new tokens and seqlen_k keys in all (new ones included) has position
//    p = seqlen_k - seqlen_q + i: masks are aligned to the bottom right. Key j is seen when
//        causal:            j <= p
//        window_left >= 0:  j >= p - window_left        (inclusive)
//        window_right >= 0: j <= p + window_right       (inclusive; causal means window_right = 0)
//        attention_chunk>0: j / attention_chunk == p / attention_chunk   (rounded down; p may be negative)
//  - score = softmax_scale * q.k * (q_descale * k_descale); then, when softcap > 0, score = softcap * tanh(score /
//  softcap); then the mask.
//  - sinks[h], when given, adds exp(sinks[h] - max) to the softmax denominator once; it has no value vector.
//  - softmax_lse = log(sum of exp(score)) (sink included), natural logarithm.
//  - A query row that sees no key gives out = 0 and lse = -inf, sink or not; a request with seqlen_k = 0 likewise.
//  - Slots past a sequence's end, unused pages and page ids past a row's end are never read as numbers: they may hold
//  NaN.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "tensor/dtype.h"

namespace onepass {

// Strides are in elements; the innermost (head_dim) stride is always 1. Nothing is owned.
struct AttentionParams {
  // Queries: [total_q, num_heads, head_dim].
  const void* q = nullptr;
  DType q_dtype = DType::kF32;
  int64_t q_row_stride = 0;
  int64_t q_head_stride = 0;

  // Keys and values. Paged (page_table given): [num_pages, page_size, num_heads_kv, head_dim], k_page_stride between
  // pages. Contiguous (page_table null): [total_k, num_heads_kv, head_dim], request b begins at row cu_seqlens_k[b].
  // v's last dimension is head_dim_v. total_kv_rows says how far the memory of both reaches, in rows of one token:
  // num_pages * page_size, or total_k; 0 when the caller does not know, and kernels that copy by tensor maps refuse.
  const void* k = nullptr;
  const void* v = nullptr;
  DType kv_dtype = DType::kF32;
  int64_t k_page_stride = 0;
  int64_t k_row_stride = 0;
  int64_t k_head_stride = 0;
  int64_t v_page_stride = 0;
  int64_t v_row_stride = 0;
  int64_t v_head_stride = 0;
  int64_t total_kv_rows = 0;

  // Results: out [total_q, num_heads, head_dim_v]; softmax_lse [num_heads, total_q] float32, or null.
  void* out = nullptr;
  DType out_dtype = DType::kF32;
  int64_t out_row_stride = 0;
  int64_t out_head_stride = 0;
  float* softmax_lse = nullptr;

  int batch = 0;
  int total_q = 0;       // rows of q; cu_seqlens_q[batch]
  int max_seqlen_q = 0;  // at least the longest of them
  int num_heads = 0;     // a multiple of num_heads_kv
  int num_heads_kv = 0;
  int head_dim = 0;
  int head_dim_v = 0;

  const int32_t* cu_seqlens_q = nullptr;   // [batch + 1], prefix sums of the query lengths
  const int32_t* cache_seqlens = nullptr;  // [batch], keys of each request, new tokens included
  const int32_t* cu_seqlens_k = nullptr;   // [batch + 1]; contiguous layout only
  const int32_t* page_table = nullptr;     // [batch, page_table_stride] page ids
  int64_t page_table_stride = 0;
  int page_size = 0;

  float softmax_scale = 1.0f;
  bool causal = false;
  int window_left = -1;   // -1: no limit
  int window_right = -1;  // -1: no limit
  int attention_chunk = 0;
  float softcap = 0.0f;              // 0: none
  const float* sinks = nullptr;      // [num_heads]
  const float* q_descale = nullptr;  // [batch, num_heads_kv] (fp8); null: 1
  const float* k_descale = nullptr;
  const float* v_descale = nullptr;

  // Split-KV: 0 lets the kernel choose, 1 never splits, n > 1 cuts each sequence into at most n parts. split_size > 0
  // cuts every split_size keys instead (or, in kernels that never do, nowhere), so that a result does not depend on the
  // rest of the batch.
  int num_splits = 0;
  int split_size = 0;

  // Each row's result follows, bit for bit, from its own query, its keys and split_size: whatever the batch, the chunk
  // of a prompt that the row is computed in, or the number of threads. Takes a split_size; prefill is slower.
  bool batch_invariant = false;
};

// What every kernel asks of its parameters (sizes positive, dimensions and dtypes known, pointers present); the status
// names the first field that is wrong, with its value. Does not look at the arrays' contents.
Status validate(const AttentionParams& params);

}  // namespace onepass
