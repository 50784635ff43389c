// How far from the exact result a kernel of low precision may be.
#pragma once

#include "attention/testing/attention_problem.h"
#include "tensor/device.h"

namespace onepass {

// Attention in the straightforward way of low precision, on the host: scores and softmax in float32 from the rounded
// inputs, the weights exp(score - max) rounded to kv_dtype, their products with V summed in float32, the result rounded
// to out_dtype.
AttentionResult low_precision_attention(const AttentionProblem& problem, const Stream& stream = {});

// The largest differences that compare(result, exact) may find.
struct ErrorBound {
  double out = 0.0;
  double lse = 0.0;
};

// FlashAttention-3's rule: twice the error of the straightforward computation, plus the rounding of the output. `exact`
// is problem.run_reference().
ErrorBound error_bound(const AttentionProblem& problem, const AttentionResult& exact, const Stream& stream = {});

}  // namespace onepass
