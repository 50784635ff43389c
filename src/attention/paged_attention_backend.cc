#include "attention/paged_attention_backend.h"

#include <algorithm>

#include "attention/paged_attention_params.h"
#include "base/check.h"
#include "kernels/kv_store.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

namespace onepass {
PagedAttentionBackend::PagedAttentionBackend(const AttentionOptions& options, KvPool& pool, const RequestTable& table)
    : options_(options),
      pool_(pool),
      table_(table),
      cu_seqlens_q_(options.max_requests + 1),
      cache_seqlens_(options.max_requests),
      page_table_(static_cast<size_t>(options.max_requests) * table.max_pages_per_request(), RequestTable::kNoPage),
      out_cache_loc_(options.max_tokens),
      positions_(options.max_tokens) {}

void PagedAttentionBackend::set_batch(const AttentionBatch& batch, StepUpload&) {
  ONEPASS_CHECK_LE(batch.num_requests, options_.max_requests);
  ONEPASS_CHECK_LE(batch.num_tokens, options_.max_tokens);
  num_requests_ = batch.num_requests;
  num_tokens_ = batch.num_tokens;
  max_seqlen_q_ = batch.max_seqlen_q;
  std::copy_n(batch.cu_seqlens_q, batch.num_requests + 1, cu_seqlens_q_.begin());
  std::copy_n(batch.cache_seqlens, batch.num_requests, cache_seqlens_.begin());
  std::copy_n(batch.out_cache_loc, batch.num_tokens, out_cache_loc_.begin());
  std::copy_n(batch.positions, batch.num_tokens, positions_.begin());
  const int page_size = pool_.config().page_size;
  for (int request = 0; request < batch.num_requests; ++request) {
    const std::span<const PageId> pages = table_.pages_or_dummy(batch.request_slots[request]);
    const size_t used = (batch.cache_seqlens[request] + page_size - 1) / page_size;
    ONEPASS_CHECK_LE(used, pages.size());
    std::copy_n(pages.begin(), used,
                page_table_.begin() + static_cast<int64_t>(request) * table_.max_pages_per_request());
  }
}

// The norm of each head, where there is one, and the rotary embedding, in place.
void PagedAttentionBackend::norm_and_rotate(const AttentionLayer& layer, float* x, int64_t row_stride, int num_heads,
                                            const float* norm, const Stream& stream) const {
  if (norm != nullptr) {
    run_rms_norm({.x = x,
                  .x_group_stride = row_stride,
                  .x_row_stride = layer.head_dim,
                  .weight = norm,
                  .eps = layer.qk_norm_eps,
                  .out = x,
                  .out_group_stride = row_stride,
                  .out_row_stride = layer.head_dim,
                  .num_groups = num_tokens_,
                  .rows = num_heads,
                  .cols = layer.head_dim},
                 stream);
  }
  run_rope({.x = x,
            .row_stride = row_stride,
            .num_heads = num_heads,
            .head_dim = layer.head_dim,
            .rotary_dim = layer.rotary_dim,
            .num_tokens = num_tokens_,
            .positions = positions_.data(),
            .inv_freq = layer.rope_inv_freq,
            .attention_factor = layer.rope_attention_factor},
           stream);
}

Status PagedAttentionBackend::run(const AttentionLayer& layer, const AttentionInputs& io, const Stream& stream) {
  ONEPASS_CHECK(io.dtype == DType::kF32);
  norm_and_rotate(layer, static_cast<float*>(io.q), io.row_stride, layer.num_heads, layer.q_norm, stream);
  norm_and_rotate(layer, static_cast<float*>(io.k), io.row_stride, layer.num_kv_heads, layer.k_norm, stream);
  void* const k_pool = pool_.k(layer.index);
  void* const v_pool = pool_.v(layer.index);
  run_kv_store({.k = static_cast<const float*>(io.k),
                .k_row_stride = io.row_stride,
                .v = static_cast<const float*>(io.v),
                .v_row_stride = io.row_stride,
                .num_tokens = num_tokens_,
                .num_kv_heads = layer.num_kv_heads,
                .head_dim = layer.head_dim,
                .head_dim_v = layer.head_dim_v,
                .slots = out_cache_loc_.data(),
                .k_pool = k_pool,
                .v_pool = v_pool,
                .dtype = pool_.config().dtype},
               stream);
  const AttentionPlanView view{.num_requests = num_requests_,
                               .num_tokens = num_tokens_,
                               .max_seqlen_q = max_seqlen_q_,
                               .cu_seqlens_q = cu_seqlens_q_.data(),
                               .cache_seqlens = cache_seqlens_.data(),
                               .page_table = page_table_.data(),
                               .page_table_stride = table_.max_pages_per_request()};
  attend(paged_attention_params(layer, io, pool_, view, options_.batch_invariant), stream);
  return ok_status();
}

}  // namespace onepass
