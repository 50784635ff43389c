// Attention written to be read: the definition, one query row at a time, in float64. The oracle of every fast kernel
// and the `reference` backend.
#pragma once

#include "attention/attention_params.h"
#include "tensor/device.h"

namespace onepass {

// Computes params.out and, when given, params.softmax_lse, with every feature and the semantics of attention_params.h.
// Scores, softmax and sums are float64, so the result is the exact one rounded to out_dtype for all practical ends;
// num_splits and split_size change nothing. Every row is computed alone: results do not depend on the rest of the
// batch.
//
// REQUIRES: validate(params) is ok (checked); k_page_stride and its like are read only where the layout uses them.
void reference_attention(const AttentionParams& params);

// The same, its rows and heads shared out among the threads of stream.pool (when there is one).
void reference_attention(const AttentionParams& params, const Stream& stream);

}  // namespace onepass
