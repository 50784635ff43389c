#include "attention/c_api/structs.h"

namespace onepass::c_api {
namespace {

StatusOr<DType> dtype_of(int32_t number, std::string_view field) {
  switch (number) {
    case ONEPASS_FLOAT32:
      return DType::kF32;
    case ONEPASS_FLOAT16:
      return DType::kF16;
    case ONEPASS_BFLOAT16:
      return DType::kBF16;
    default:
      return invalid_argument(field, ": expected 0 (float32), 1 (float16) or 2 (bfloat16), found ", number);
  }
}

StatusOr<bool> switch_of(int32_t number, std::string_view field) {
  if (number == 0 || number == 1) return number == 1;
  return invalid_argument(field, ": expected 0 or 1, found ", number);
}

}  // namespace

StatusOr<AttentionParams> attention_params(const onepass_attention_params* c) {
  ONEPASS_RETURN_IF_ERROR(check_struct(c, "onepass_attention_params"));
  ONEPASS_ASSIGN_OR_RETURN(const DType q_dtype, dtype_of(c->q_dtype, "attention: q_dtype"));
  ONEPASS_ASSIGN_OR_RETURN(const DType kv_dtype, dtype_of(c->kv_dtype, "attention: kv_dtype"));
  ONEPASS_ASSIGN_OR_RETURN(const DType out_dtype, dtype_of(c->out_dtype, "attention: out_dtype"));
  ONEPASS_ASSIGN_OR_RETURN(const bool causal, switch_of(c->causal, "attention: causal"));
  ONEPASS_ASSIGN_OR_RETURN(const bool batch_invariant, switch_of(c->batch_invariant, "attention: batch_invariant"));
  return AttentionParams{.q = c->q,
                         .q_dtype = q_dtype,
                         .q_row_stride = c->q_row_stride,
                         .q_head_stride = c->q_head_stride,
                         .k = c->k,
                         .v = c->v,
                         .kv_dtype = kv_dtype,
                         .k_page_stride = c->k_page_stride,
                         .k_row_stride = c->k_row_stride,
                         .k_head_stride = c->k_head_stride,
                         .v_page_stride = c->v_page_stride,
                         .v_row_stride = c->v_row_stride,
                         .v_head_stride = c->v_head_stride,
                         .total_kv_rows = c->total_kv_rows,
                         .out = c->out,
                         .out_dtype = out_dtype,
                         .out_row_stride = c->out_row_stride,
                         .out_head_stride = c->out_head_stride,
                         .softmax_lse = c->softmax_lse,
                         .batch = c->batch,
                         .total_q = c->total_q,
                         .max_seqlen_q = c->max_seqlen_q,
                         .num_heads = c->num_heads,
                         .num_heads_kv = c->num_heads_kv,
                         .head_dim = c->head_dim,
                         .head_dim_v = c->head_dim_v,
                         .cu_seqlens_q = c->cu_seqlens_q,
                         .cache_seqlens = c->cache_seqlens,
                         .cu_seqlens_k = c->cu_seqlens_k,
                         .page_table = c->page_table,
                         .page_table_stride = c->page_table_stride,
                         .page_size = c->page_size,
                         .softmax_scale = c->softmax_scale,
                         .causal = causal,
                         .window_left = c->window_left,
                         .window_right = c->window_right,
                         .attention_chunk = c->attention_chunk,
                         .softcap = c->softcap,
                         .sinks = c->sinks,
                         .num_splits = c->num_splits,
                         .split_size = c->split_size,
                         .batch_invariant = batch_invariant};
}

StatusOr<MergeParams> merge_params(const onepass_merge_params* c) {
  ONEPASS_RETURN_IF_ERROR(check_struct(c, "onepass_merge_params"));
  if (c->num_stacks < 0 || c->num_stacks > kMaxPartStacks || (c->num_stacks > 0 && c->stacks == nullptr)) {
    return invalid_argument("merge: num_stacks: expected 0 to ", kMaxPartStacks, " with an address of stacks, found ",
                            c->num_stacks);
  }
  ONEPASS_ASSIGN_OR_RETURN(const DType out_dtype, dtype_of(c->out_dtype, "merge: out_dtype"));
  MergeParams p = {.num_stacks = c->num_stacks,
                   .out = c->out,
                   .out_dtype = out_dtype,
                   .out_row_stride = c->out_row_stride,
                   .out_head_stride = c->out_head_stride,
                   .softmax_lse = c->softmax_lse,
                   .lse_head_stride = c->lse_head_stride,
                   .rows = c->rows,
                   .num_heads = c->num_heads,
                   .head_dim_v = c->head_dim_v};
  for (int s = 0; s < c->num_stacks; ++s) {
    const onepass_part_stack& stack = c->stacks[s];
    ONEPASS_ASSIGN_OR_RETURN(const DType dtype, dtype_of(stack.dtype, "merge: dtype"));
    p.stacks[s] = {.out = stack.out,
                   .dtype = dtype,
                   .part_stride = stack.part_stride,
                   .row_stride = stack.row_stride,
                   .head_stride = stack.head_stride,
                   .lse = stack.lse,
                   .lse_part_stride = stack.lse_part_stride,
                   .lse_head_stride = stack.lse_head_stride,
                   .count = stack.count};
  }
  return p;
}

StatusOr<AppendKvParams> append_kv_params(const onepass_append_kv_params* c) {
  ONEPASS_RETURN_IF_ERROR(check_struct(c, "onepass_append_kv_params"));
  ONEPASS_ASSIGN_OR_RETURN(const DType dtype, dtype_of(c->dtype, "append_kv: dtype"));
  ONEPASS_ASSIGN_OR_RETURN(const bool interleaved, switch_of(c->rotary_interleaved, "append_kv: rotary_interleaved"));
  ONEPASS_ASSIGN_OR_RETURN(const bool by_row, switch_of(c->rotate_queries_by_row, "append_kv: rotate_queries_by_row"));
  return AppendKvParams{.dtype = dtype,
                        .batch = c->batch,
                        .num_heads = c->num_heads,
                        .num_heads_kv = c->num_heads_kv,
                        .head_dim = c->head_dim,
                        .head_dim_v = c->head_dim_v,
                        .cache_seqlens = c->cache_seqlens,
                        .cu_seqlens_k = c->cu_seqlens_k,
                        .cache_leftpad = c->cache_leftpad,
                        .cache_batch_idx = c->cache_batch_idx,
                        .seqlen_k = c->seqlen_k,
                        .entry_rows = c->entry_rows,
                        .seqlens_k_out = c->seqlens_k_out,
                        .begins_out = c->begins_out,
                        .k_new = c->k_new,
                        .v_new = c->v_new,
                        .k_new_batch_stride = c->k_new_batch_stride,
                        .k_new_row_stride = c->k_new_row_stride,
                        .k_new_head_stride = c->k_new_head_stride,
                        .v_new_batch_stride = c->v_new_batch_stride,
                        .v_new_row_stride = c->v_new_row_stride,
                        .v_new_head_stride = c->v_new_head_stride,
                        .cu_seqlens_new = c->cu_seqlens_new,
                        .seqlen_new = c->seqlen_new,
                        .total_new = c->total_new,
                        .k_cache = c->k_cache,
                        .v_cache = c->v_cache,
                        .k_page_stride = c->k_page_stride,
                        .k_row_stride = c->k_row_stride,
                        .k_head_stride = c->k_head_stride,
                        .v_page_stride = c->v_page_stride,
                        .v_row_stride = c->v_row_stride,
                        .v_head_stride = c->v_head_stride,
                        .page_table = c->page_table,
                        .page_table_stride = c->page_table_stride,
                        .page_size = c->page_size,
                        .pages_per_request = c->pages_per_request,
                        .rotary_cos = c->rotary_cos,
                        .rotary_sin = c->rotary_sin,
                        .rotary_seqlens = c->rotary_seqlens,
                        .rotary_rows = c->rotary_rows,
                        .rotary_dim = c->rotary_dim,
                        .rotary_interleaved = interleaved,
                        .rotate_queries_by_row = by_row,
                        .q = c->q,
                        .q_out = c->q_out,
                        .q_batch_stride = c->q_batch_stride,
                        .q_row_stride = c->q_row_stride,
                        .q_head_stride = c->q_head_stride,
                        .cu_seqlens_q = c->cu_seqlens_q,
                        .seqlen_q = c->seqlen_q,
                        .total_q = c->total_q};
}

}  // namespace onepass::c_api
