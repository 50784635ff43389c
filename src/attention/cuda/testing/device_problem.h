// An AttentionProblem in a GPU's memory.
#pragma once

#include <cstdint>

#include "attention/testing/attention_problem.h"
#include "tensor/cuda/cuda_buffer.h"

namespace onepass {

// Copies of all buffers of a problem, byte for byte: NaN in unused slots and padding, page ids of 2147480000, an output
// of NaN. Each buffer is an allocation of its own (compute-sanitizer sees what passes its end), and behind the outputs
// lie guard bytes that padding_intact() looks at. Moves, does not copy.
class DeviceProblem {
 public:
  // With leading_elements > 0 the pool of K begins with at least so many elements of NaN in unused pages (rows, when
  // contiguous), V's with as many pages: for offsets beyond 32 bits.
  static StatusOr<DeviceProblem> make(const AttentionSpec& spec, int64_t leading_elements = 0);

  // Like the host problem's, with pointers to the GPU's memory.
  const AttentionParams& params() const { return params_; }
  const AttentionProblem& host() const { return host_; }
  const AttentionSpec& spec() const { return host_.spec(); }

  // Writes another problem to the same addresses: lengths, page table, numbers. Its params are this one's but for
  // lengths (total_q and max_seqlen_q at most those of params(), which stay) and its buffers fit in this one's, as
  // capacity_k can see to. REQUIRES: no leading_elements.
  Status overwrite(const AttentionSpec& spec);

  // Fills the outputs with NaN again.
  Status clear_output();

  // What was last written to params().out and softmax_lse. After an overwrite() with fewer rows: those rows alone.
  StatusOr<AttentionResult> result();

  // After result(): false when something was written between the output's rows, behind the rows that exist, or behind
  // the outputs' memory.
  bool padding_intact() const { return padding_intact_; }

 private:
  explicit DeviceProblem(AttentionProblem host) : host_(std::move(host)) {}
  Status upload();
  Status upload_keys();

  AttentionProblem host_;
  AttentionParams params_;
  int64_t leading_rows_ = 0;  // of K and V: pages times page_size
  bool padding_intact_ = true;
  CudaBuffer q_, k_, v_, out_, lse_, cu_seqlens_q_, cache_seqlens_, cu_seqlens_k_, page_table_, sinks_;
  CudaBuffer q_descale_, k_descale_, v_descale_;
};

}  // namespace onepass
