// The norm of Q's and K's heads, their rotary embedding and the store of K and V into the pages of the KV cache, in one
// pass over a step's new tokens: what the engine does between a layer's projections and its attention. The GPU's
// run_rms_norm of heads, run_rope and run_kv_store.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "tensor/dtype.h"

struct CUstream_st;

namespace onepass {

// Strides are in elements; that of the last dimension is 1. All pointers are device memory. K and V are not changed.
struct RopeStoreKvParams {
  DType dtype = DType::kBF16;  // of q, k and v: float32, float16 or bfloat16
  const void* q = nullptr;     // [num_tokens, num_heads, head_dim]; null: no queries
  int64_t q_row_stride = 0;
  int64_t q_head_stride = 0;
  void* q_out = nullptr;  // like q, or q itself
  int64_t q_out_row_stride = 0;
  int64_t q_out_head_stride = 0;
  const void* k = nullptr;  // [num_tokens, num_heads_kv, head_dim]
  int64_t k_row_stride = 0;
  int64_t k_head_stride = 0;
  const void* v = nullptr;  // [num_tokens, num_heads_kv, head_dim_v]
  int64_t v_row_stride = 0;
  int64_t v_head_stride = 0;

  int64_t num_tokens = 0;
  int num_heads = 0;
  int num_heads_kv = 0;
  int head_dim = 0;
  int head_dim_v = 0;

  // QK norm: before the rotation each head becomes x / sqrt(mean(x^2) + eps) * norm, rounded to dtype: what
  // run_rms_norm_cuda leaves. Null: none.
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
  float norm_eps = 0.0f;

  // As in RopeParams: element i of a head is rotated with element i + rotary_dim / 2 by the angle positions[t] *
  // inv_freq[i], cos and sin times attention_factor. rotary_dim = 0: no rotation.
  int rotary_dim = 0;
  const int32_t* positions = nullptr;  // [num_tokens]
  const double* inv_freq = nullptr;    // [rotary_dim / 2]
  float attention_factor = 1.0f;

  // Token t goes to slot slots[t] = page * page_size + offset; a negative slot is not stored (its q is rotated).
  const void* slots = nullptr;     // [num_tokens]
  DType slot_dtype = DType::kI64;  // int32 or int64
  int page_size = 0;
  DType pool_dtype = DType::kBF16;  // float32, float16 or bfloat16
  void* k_pool = nullptr;           // [pages, page_size, num_heads_kv, head_dim]
  int64_t k_pool_page_stride = 0;
  int64_t k_pool_row_stride = 0;
  int64_t k_pool_head_stride = 0;
  void* v_pool = nullptr;  // [pages, page_size, num_heads_kv, head_dim_v]
  int64_t v_pool_page_stride = 0;
  int64_t v_pool_row_stride = 0;
  int64_t v_pool_head_stride = 0;
};

// Queues the work. The error names the field that is wrong, or is a CUDA error.
Status run_rope_store_kv(const RopeStoreKvParams& params, CUstream_st* stream);

}  // namespace onepass
