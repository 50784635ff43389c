// One-pass attention (FlashAttention) on the CPU, over pages or contiguous rows. Everything that attention_params.h
// says, for any number of query rows: prefill, extend and decode are the same algorithm, with the query heads of one KV
// head packed as rows of one tile, so that each key and value is loaded once for all of them.
#pragma once

#include <cstddef>
#include <vector>

#include "attention/attention_params.h"
#include "tensor/device.h"

namespace onepass {

// Scratch memory of flash_attention_cpu; grows, and is kept by the caller from call to call.
class FlashAttentionWorkspace {
 public:
  // Room for `floats` float32, aligned to a cache line, whose contents are undefined.
  float* reserve(size_t floats);

 private:
  std::vector<float> memory_;
};

// What this kernel asks beyond validate(params): head dimensions up to 512. The status names the field.
Status flash_attention_cpu_supports(const AttentionParams& params);

// Writes params.out (and softmax_lse). Scores and sums are float32; with K and V in bf16 on a processor with bf16 dot
// products, Q and the softmax weights are rounded to bf16 before they are multiplied, as on a GPU's tensor cores. A
// row's result depends on its own request alone when params.split_size > 0 or num_splits = 1; otherwise the number of
// splits depends on the batch and the threads. REQUIRES: flash_attention_cpu_supports(params); one call at a time for a
// workspace.
void flash_attention_cpu(const AttentionParams& params, FlashAttentionWorkspace& workspace, const Stream& stream);

}  // namespace onepass
