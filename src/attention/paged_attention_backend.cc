#include "attention/paged_attention_backend.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/kv_store.h"

namespace onepass {
namespace {

// Keys of a part where results must not depend on how many parts the threads would like: a lone decode at 8,192 keys is
// eight of them.
constexpr int kInvariantSplit = 1024;

}  // namespace

PagedAttentionBackend::PagedAttentionBackend(const AttentionOptions& options, KvPool& pool, const RequestTable& table)
    : options_(options),
      pool_(pool),
      table_(table),
      cu_seqlens_q_(options.max_requests + 1),
      cache_seqlens_(options.max_requests),
      page_table_(static_cast<size_t>(options.max_requests) * table.max_pages_per_request(), RequestTable::kNoPage),
      out_cache_loc_(options.max_tokens) {}

void PagedAttentionBackend::plan(const AttentionBatch& batch, const Stream&) {
  ONEPASS_CHECK_LE(batch.num_requests, options_.max_requests);
  ONEPASS_CHECK_LE(batch.num_tokens, options_.max_tokens);
  num_requests_ = batch.num_requests;
  num_tokens_ = batch.num_tokens;
  max_seqlen_q_ = batch.max_seqlen_q;
  std::copy_n(batch.cu_seqlens_q, batch.num_requests + 1, cu_seqlens_q_.begin());
  std::copy_n(batch.cache_seqlens, batch.num_requests, cache_seqlens_.begin());
  std::copy_n(batch.out_cache_loc, batch.num_tokens, out_cache_loc_.begin());
  const int page_size = pool_.config().page_size;
  for (int request = 0; request < batch.num_requests; ++request) {
    const std::span<const PageId> pages = table_.pages(batch.request_slots[request]);
    const size_t used = (batch.cache_seqlens[request] + page_size - 1) / page_size;
    ONEPASS_CHECK_LE(used, pages.size());
    std::copy_n(pages.begin(), used,
                page_table_.begin() + static_cast<int64_t>(request) * table_.max_pages_per_request());
  }
}

void PagedAttentionBackend::run(const AttentionLayer& layer, const AttentionInputs& io, const Stream& stream) {
  void* const k_pool = pool_.k(layer.index);
  void* const v_pool = pool_.v(layer.index);
  run_kv_store({.k = io.k,
                .k_row_stride = io.k_row_stride,
                .v = io.v,
                .v_row_stride = io.v_row_stride,
                .num_tokens = num_tokens_,
                .num_kv_heads = layer.num_kv_heads,
                .head_dim = layer.head_dim,
                .head_dim_v = layer.head_dim_v,
                .slots = out_cache_loc_.data(),
                .k_pool = k_pool,
                .v_pool = v_pool,
                .dtype = pool_.config().dtype},
               stream);
  attend({.q = io.q,
          .q_dtype = DType::kF32,
          .q_row_stride = io.q_row_stride,
          .q_head_stride = layer.head_dim,
          .k = k_pool,
          .v = v_pool,
          .kv_dtype = pool_.config().dtype,
          .k_page_stride = pool_.k_page_stride(),
          .k_row_stride = pool_.k_row_stride(),
          .k_head_stride = pool_.k_head_stride(),
          .v_page_stride = pool_.v_page_stride(),
          .v_row_stride = pool_.v_row_stride(),
          .v_head_stride = pool_.v_head_stride(),
          .total_kv_rows = int64_t{pool_.config().num_pages} * pool_.config().page_size,
          .out = io.out,
          .out_dtype = DType::kF32,
          .out_row_stride = io.out_row_stride,
          .out_head_stride = layer.head_dim_v,
          .batch = num_requests_,
          .total_q = num_tokens_,
          .max_seqlen_q = max_seqlen_q_,
          .num_heads = layer.num_heads,
          .num_heads_kv = layer.num_kv_heads,
          .head_dim = layer.head_dim,
          .head_dim_v = layer.head_dim_v,
          .cu_seqlens_q = cu_seqlens_q_.data(),
          .cache_seqlens = cache_seqlens_.data(),
          .page_table = page_table_.data(),
          .page_table_stride = table_.max_pages_per_request(),
          .page_size = pool_.config().page_size,
          .softmax_scale = layer.softmax_scale,
          .causal = true,
          .window_left = layer.window_left,
          .attention_chunk = layer.attention_chunk,
          .softcap = layer.softcap,
          .sinks = layer.sinks,
          .split_size = options_.batch_invariant ? kInvariantSplit : 0,
          .batch_invariant = options_.batch_invariant},
         stream);
}

}  // namespace onepass
