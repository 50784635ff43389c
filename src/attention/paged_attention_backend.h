// What the backends share: the plan's buffers, the store of K and V, and the parameters of the kernel call. A backend
// adds the kernel alone.
#pragma once

#include <vector>

#include "attention/attention_backend.h"
#include "attention/attention_params.h"

namespace onepass {

class PagedAttentionBackend : public AttentionBackend {
 public:
  PagedAttentionBackend(const AttentionOptions& options, KvPool& pool, const RequestTable& table);

  size_t upload_bytes() const final { return 0; }  // the device reads what the host has written
  void set_batch(const AttentionBatch& batch, StepUpload& upload) final;
  // Each kernel shares its work by the lengths that it finds.
  Status plan(const Stream&) final { return ok_status(); }
  Status run(const AttentionLayer& layer, const AttentionInputs& io, const Stream& stream) final;

 protected:
  virtual void attend(const AttentionParams& params, const Stream& stream) = 0;

 private:
  void norm_and_rotate(const AttentionLayer& layer, float* x, int64_t row_stride, int num_heads, const float* norm,
                       const Stream& stream) const;

  const AttentionOptions options_;
  KvPool& pool_;
  const RequestTable& table_;

  // Written by set_batch(), read by run(): sized once, so their addresses never change.
  int num_requests_ = 0;
  int num_tokens_ = 0;
  int max_seqlen_q_ = 0;
  std::vector<int32_t> cu_seqlens_q_;   // [max_requests + 1]
  std::vector<int32_t> cache_seqlens_;  // [max_requests]
  std::vector<int32_t> page_table_;     // [max_requests, max_pages_per_request]
  std::vector<int64_t> out_cache_loc_;  // [max_tokens]
  std::vector<int32_t> positions_;      // [max_tokens]
};

}  // namespace onepass
