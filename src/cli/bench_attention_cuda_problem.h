// A shape in a GPU's memory, for benchmarks: numbers from a normal distribution, shuffled pages, and so many copies of
// the inputs that none is found in the L2 cache when its turn comes.
#pragma once

#include <vector>

#include "attention/attention_params.h"
#include "cli/bench_attention.h"
#include "tensor/cuda/cuda_buffer.h"

namespace onepass {

// Random bytes for all problems of a dtype, drawn once. Its length is no multiple of a row's, so that the rows of what
// it fills differ.
StatusOr<CudaBuffer> random_block(DType dtype);

class CudaBenchProblem {
 public:
  // Copies until K and V together are `cold_bytes` at least.
  static StatusOr<CudaBenchProblem> make(const AttentionShape& shape, DType dtype, int64_t cold_bytes,
                                         const CudaBuffer& block);

  int copies() const { return static_cast<int>(q_.size()); }
  // The params of all copies differ in q, k, v and out alone: one plan serves them all.
  const AttentionParams& params(int copy) const { return params_[copy]; }

  // Fills the outputs of all copies with NaN, whatever their dtype: what a kernel left there must not pass for the next
  // one's. No stream may be using them.
  Status poison_outputs();

  // `rows` query rows of one request from `first_row` on, as a problem of its own; its lengths are written to `lengths`
  // (3 numbers). Out and softmax_lse are left to the caller.
  StatusOr<AttentionParams> part(int copy, int request, int first_row, int rows, CudaBuffer& lengths) const;

 private:
  AttentionShape shape_;
  std::vector<CudaBuffer> q_, k_, v_, out_;
  CudaBuffer lse_, cu_seqlens_q_, cache_seqlens_, cu_seqlens_k_, page_table_;
  std::vector<AttentionParams> params_;
};

}  // namespace onepass
