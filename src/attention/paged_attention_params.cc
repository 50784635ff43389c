#include "attention/paged_attention_params.h"

namespace onepass {
namespace {

// Keys of a part where results must not depend on how many parts the device would like: a lone decode at 8,192 keys is
// eight of them.
constexpr int kInvariantSplit = 1024;

}  // namespace

AttentionParams paged_attention_params(const AttentionLayer& layer, const AttentionInputs& io, KvPool& pool,
                                       const AttentionPlanView& plan, bool batch_invariant) {
  return {.q = io.q,
          .q_dtype = io.dtype,
          .q_row_stride = io.row_stride,
          .q_head_stride = layer.head_dim,
          .k = pool.k(layer.index),
          .v = pool.v(layer.index),
          .kv_dtype = pool.config().dtype,
          .k_page_stride = pool.k_page_stride(),
          .k_row_stride = pool.k_row_stride(),
          .k_head_stride = pool.k_head_stride(),
          .v_page_stride = pool.v_page_stride(),
          .v_row_stride = pool.v_row_stride(),
          .v_head_stride = pool.v_head_stride(),
          .total_kv_rows = int64_t{pool.config().num_pages} * pool.config().page_size,
          .out = io.out,
          .out_dtype = io.dtype,
          .out_row_stride = io.out_row_stride,
          .out_head_stride = layer.head_dim_v,
          .batch = plan.num_requests,
          .total_q = plan.num_tokens,
          .max_seqlen_q = plan.max_seqlen_q,
          .num_heads = layer.num_heads,
          .num_heads_kv = layer.num_kv_heads,
          .head_dim = layer.head_dim,
          .head_dim_v = layer.head_dim_v,
          .cu_seqlens_q = plan.cu_seqlens_q,
          .cache_seqlens = plan.cache_seqlens,
          .page_table = plan.page_table,
          .page_table_stride = plan.page_table_stride,
          .page_size = pool.config().page_size,
          .softmax_scale = layer.softmax_scale,
          .causal = true,
          .window_left = layer.window_left,
          .attention_chunk = layer.attention_chunk,
          .softcap = layer.softcap,
          .sinks = layer.sinks,
          .split_size = batch_invariant ? kInvariantSplit : 0,
          .batch_invariant = batch_invariant};
}

}  // namespace onepass
