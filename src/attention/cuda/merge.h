// Attention over a set of keys from attention over its parts, on the GPU: prefix and suffix, the levels of a cascade, a
// tree's branches, splits. attention/reference/merge.h says why it is exact.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "tensor/dtype.h"

struct CUstream_st;

namespace onepass {

// `count` parts that lie one after the other. Strides are in elements; that of head_dim_v is 1.
struct PartStack {
  const void* out = nullptr;  // [count, rows, num_heads, head_dim_v]; where lse is -inf it is not read and may be NaN
  DType dtype = DType::kF32;  // float32, float16 or bfloat16
  int64_t part_stride = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  const float* lse = nullptr;  // [count, num_heads, rows], natural logarithms; -inf: the part is empty
  int64_t lse_part_stride = 0;
  int64_t lse_head_stride = 0;
  int count = 0;
};

inline constexpr int kMaxPartStacks = 8;

// Merges in the order given, in float32. Where all parts are empty, out = 0 and lse = -inf; one part that is not empty
// comes back bit for bit. `out` may be the memory of a part of the same dtype and strides.
struct MergeParams {
  PartStack stacks[kMaxPartStacks];
  int num_stacks = 0;

  void* out = nullptr;  // [rows, num_heads, head_dim_v]
  DType out_dtype = DType::kF32;
  int64_t out_row_stride = 0;
  int64_t out_head_stride = 0;
  float* softmax_lse = nullptr;  // [num_heads, rows], or null
  int64_t lse_head_stride = 0;
  const float* sinks = nullptr;  // [num_heads], or null: added to the denominator of rows that are not empty

  int64_t rows = 0;
  const int32_t* existing_rows = nullptr;  // in device memory, or null: how many of them to write, from the first
  int num_heads = 0;
  int head_dim_v = 0;  // a multiple of 4, like the strides of `out`s
};

// Queues the merge; the error names the field that is wrong, or is a CUDA error.
Status merge_attention_parts(const MergeParams& params, CUstream_st* stream);

}  // namespace onepass
