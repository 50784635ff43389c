// A planned step and a layer in the terms of the kernels.
#pragma once

#include "attention/attention_backend.h"
#include "attention/attention_params.h"

namespace onepass {

// A plan's arrays, in the device's memory.
struct AttentionPlanView {
  int num_requests = 0;
  int num_tokens = 0;
  int max_seqlen_q = 0;
  const int32_t* cu_seqlens_q = nullptr;   // [num_requests + 1]
  const int32_t* cache_seqlens = nullptr;  // [num_requests]
  const int32_t* page_table = nullptr;     // [num_requests, page_table_stride]
  int64_t page_table_stride = 0;
};

AttentionParams paged_attention_params(const AttentionLayer& layer, const AttentionInputs& io, KvPool& pool,
                                       const AttentionPlanView& plan, bool batch_invariant);

}  // namespace onepass
