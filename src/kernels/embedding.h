// Token ids to vectors.
#pragma once

#include <cstdint>

#include "kernels/linear.h"
#include "tensor/device.h"

namespace onepass {

// out[t] = row ids[t] of the table. REQUIRES: ids below table->rows().
struct EmbeddingParams {
  const int32_t* ids = nullptr;  // [num_tokens]
  int64_t num_tokens = 0;
  const WeightMatrix* table = nullptr;
  float* out = nullptr;  // [num_tokens, table->cols()]
  int64_t out_row_stride = 0;
};
void run_embedding(const EmbeddingParams& params, const Stream& stream);

}  // namespace onepass
