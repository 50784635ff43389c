// The choice of each request's next token on a GPU: what engine/sampler.h does on the host, by the same definitions.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/cuda/sample_plan.h"
#include "kernels/logit_adjustment.h"

struct CUstream_st;

namespace onepass {

constexpr int kMaxSampleTops = 100;

// How one row's token is chosen; the fields of SamplingParams mean what they mean there.
struct SampleRow {
  int32_t slot = -1;   // tokens[slot] takes the token; -1: nobody's row, nothing is written
  int32_t result = 0;  // where in `results` and `top_logprobs`
  float temperature = 0.0f;
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t num_logprobs = -1;  // -1: none; n: the chosen token's and the n likeliest, n <= kMaxSampleTops
  const LogitAdjustment* adjustments = nullptr;  // of different tokens, each 0 .. vocab_size - 1
  int32_t num_adjustments = 0;
  uint8_t counts_last_token = 0;  // tokens[slot] was generated once more than its `count` says, and is repeated
  uint64_t seed = 0;
  uint64_t draw = 0;  // the choice is by philox_uniform(seed, draw)
};

struct SampledRow {
  int32_t token = -1;    // -1: no logit is a finite number, or one is +inf
  float logprob = 0.0f;  // of the row's logits as they came, when num_logprobs >= 0
};

struct TopLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
};

// Everything that varies lies in device memory, so that a captured launch serves any batch of num_rows rows. Rows of
// logits belong to one SampleRow each. The same memory gives the same result, bit for bit, whatever the other rows.
struct CudaSampleParams {
  float* logits = nullptr;  // [num_rows, vocab_size], adjusted in place where a row does not fit into shared memory
  int64_t row_stride = 0;   // of logits, in floats
  int vocab_size = 0;
  int num_rows = 0;
  const SampleRow* rows = nullptr;  // [num_rows]
  int32_t* tokens = nullptr;        // [slots], read where counts_last_token; 0 is written for token -1
  // Device memory, or page-locked host memory that is mapped to the device.
  SampledRow* results = nullptr;
  TopLogprob* top_logprobs = nullptr;  // [.., kMaxSampleTops], the first min(num_logprobs, vocab_size) of each, in
                                       // descending order; may be null when no row has num_logprobs > 0
};

// Queues the work. The error names the field that is wrong, or is a CUDA error.
Status run_sample_cuda(const CudaSampleParams& params, CUstream_st* stream);
// The same by another plan than plan_sample()'s.
Status run_sample_cuda(const CudaSampleParams& params, const SamplePlan& plan, CUstream_st* stream);

}  // namespace onepass
