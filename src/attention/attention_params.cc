#include "attention/attention_params.h"

#include <cmath>

namespace onepass {

Status validate(const AttentionParams& p) {
  if (p.batch < 0) return invalid_argument("attention: batch: expected at least 0, found ", p.batch);
  if (p.total_q < 0) return invalid_argument("attention: total_q: expected at least 0, found ", p.total_q);
  if (p.max_seqlen_q < 0)
    return invalid_argument("attention: max_seqlen_q: expected at least 0, found ", p.max_seqlen_q);
  if (p.num_heads_kv <= 0)
    return invalid_argument("attention: num_heads_kv: expected at least 1, found ", p.num_heads_kv);
  if (p.num_heads <= 0 || p.num_heads % p.num_heads_kv != 0) {
    return invalid_argument("attention: num_heads: expected a multiple of num_heads_kv = ", p.num_heads_kv, ", found ",
                            p.num_heads);
  }
  if (p.head_dim <= 0) return invalid_argument("attention: head_dim: expected at least 1, found ", p.head_dim);
  if (p.head_dim_v <= 0) return invalid_argument("attention: head_dim_v: expected at least 1, found ", p.head_dim_v);
  if (p.q == nullptr || p.k == nullptr || p.v == nullptr || p.out == nullptr) {
    if (p.total_q > 0) return invalid_argument("attention: q, k, v and out: expected addresses, found a null one");
  }
  if (p.batch > 0 && (p.cu_seqlens_q == nullptr || p.cache_seqlens == nullptr)) {
    return invalid_argument("attention: cu_seqlens_q and cache_seqlens: expected addresses, found a null one");
  }
  if (p.page_table != nullptr) {
    if (p.page_size <= 0) return invalid_argument("attention: page_size: expected at least 1, found ", p.page_size);
    if (p.page_table_stride < 0) {
      return invalid_argument("attention: page_table_stride: expected at least 0, found ", p.page_table_stride);
    }
  } else if (p.batch > 0 && p.cu_seqlens_k == nullptr) {
    return invalid_argument("attention: expected a page_table or cu_seqlens_k, found neither");
  }
  for (DType dtype : {p.q_dtype, p.kv_dtype, p.out_dtype}) {
    if (dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBF16) {
      return invalid_argument("attention: dtype: expected float32, float16 or bfloat16, found ", to_string(dtype));
    }
  }
  if (p.window_left < -1)
    return invalid_argument("attention: window_left: expected at least -1, found ", p.window_left);
  if (p.window_right < -1)
    return invalid_argument("attention: window_right: expected at least -1, found ", p.window_right);
  if (p.attention_chunk < 0) {
    return invalid_argument("attention: attention_chunk: expected at least 0, found ", p.attention_chunk);
  }
  if (!std::isfinite(p.softmax_scale)) {
    return invalid_argument("attention: softmax_scale: expected a finite number, found ", p.softmax_scale);
  }
  if (!(p.softcap >= 0.0f) || std::isinf(p.softcap)) {
    return invalid_argument("attention: softcap: expected a finite number of at least 0, found ", p.softcap);
  }
  if (p.num_splits < 0) return invalid_argument("attention: num_splits: expected at least 0, found ", p.num_splits);
  if (p.split_size < 0) return invalid_argument("attention: split_size: expected at least 0, found ", p.split_size);
  if (p.batch_invariant && p.split_size == 0) {
    return invalid_argument("attention: batch_invariant: expected a split_size, found 0");
  }
  return ok_status();
}

}  // namespace onepass
