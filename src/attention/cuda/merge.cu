#include "attention/cuda/merge.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/merge_fold.cuh"
#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

constexpr int kThreads = 256;

__device__ float4 load_four(const void* data, DType dtype, int64_t at) {
  if (dtype == DType::kF32) return *reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
  const uint2 bits = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + at);
  float2 low, high;
  if (dtype == DType::kBF16) {
    low = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(bits.x));
    high = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(bits.y));
  } else {
    low = __half22float2(reinterpret_cast<const __half2&>(bits.x));
    high = __half22float2(reinterpret_cast<const __half2&>(bits.y));
  }
  return {low.x, low.y, high.x, high.y};
}

__device__ void store_four(void* data, DType dtype, int64_t at, const float4& value) {
  if (dtype == DType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(data) + at) = value;
  } else if (dtype == DType::kBF16) {
    auto* const to = reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(data) + at);
    to[0] = __floats2bfloat162_rn(value.x, value.y);
    to[1] = __floats2bfloat162_rn(value.z, value.w);
  } else {
    auto* const to = reinterpret_cast<__half2*>(static_cast<__half*>(data) + at);
    to[0] = __floats2half2_rn(value.x, value.y);
    to[1] = __floats2half2_rn(value.z, value.w);
  }
}

// A thread merges four elements of one row and head.
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ MergeParams p) {
  const int pieces = p.head_dim_v / 4;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.rows * p.num_heads * pieces) return;
  const int d = 4 * static_cast<int>(i % pieces);
  const int head = static_cast<int>(i / pieces % p.num_heads);
  const int64_t row = i / pieces / p.num_heads;
  if (p.existing_rows != nullptr && row >= *p.existing_rows) return;

  Fold state;
  float4 merged{};
  for (int s = 0; s < p.num_stacks; ++s) {
    const PartStack& stack = p.stacks[s];
    const float* lse = stack.lse + head * stack.lse_head_stride + row;
    int64_t at = row * stack.row_stride + head * stack.head_stride + d;
#pragma unroll 4
    for (int part = 0; part < stack.count; ++part, lse += stack.lse_part_stride, at += stack.part_stride) {
      if (*lse != minus_infinity()) fold(merged, load_four(stack.out, stack.dtype, at), state.add(*lse));
    }
  }
  const float factor = state.finish(p.sinks, head);
  merged = {merged.x * factor, merged.y * factor, merged.z * factor, merged.w * factor};
  store_four(p.out, p.out_dtype, row * p.out_row_stride + head * p.out_head_stride + d, merged);
  if (d == 0 && p.softmax_lse != nullptr) p.softmax_lse[head * p.lse_head_stride + row] = state.lse();
}

bool is_mergeable(DType dtype) { return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16; }

Status check(const MergeParams& p) {
  if (p.num_stacks < 0 || p.num_stacks > kMaxPartStacks) {
    return invalid_argument("merge: num_stacks: expected 0 to ", kMaxPartStacks, ", found ", p.num_stacks);
  }
  if (p.rows < 0 || p.num_heads <= 0) {
    return invalid_argument("merge: expected rows >= 0 and num_heads >= 1, found ", p.rows, " and ", p.num_heads);
  }
  if (p.head_dim_v <= 0 || p.head_dim_v % 4 != 0) {
    return invalid_argument("merge: head_dim_v: expected a multiple of 4, found ", p.head_dim_v);
  }
  if (!is_mergeable(p.out_dtype) || p.out == nullptr || p.out_row_stride % 4 != 0 || p.out_head_stride % 4 != 0) {
    return invalid_argument("merge: out: expected an address, float32, float16 or bfloat16, and strides of 4, found ",
                            to_string(p.out_dtype), " with strides ", p.out_row_stride, " and ", p.out_head_stride);
  }
  for (int s = 0; s < p.num_stacks; ++s) {
    const PartStack& stack = p.stacks[s];
    if (stack.count < 0 || (stack.count > 0 && (stack.out == nullptr || stack.lse == nullptr))) {
      return invalid_argument("merge: stack ", s, ": expected a count >= 0 and addresses, found count ", stack.count);
    }
    if (!is_mergeable(stack.dtype) || stack.part_stride % 4 != 0 || stack.row_stride % 4 != 0 ||
        stack.head_stride % 4 != 0) {
      return invalid_argument("merge: stack ", s, ": expected float32, float16 or bfloat16 and strides of 4, found ",
                              to_string(stack.dtype), " with strides ", stack.part_stride, ", ", stack.row_stride,
                              " and ", stack.head_stride);
    }
  }
  return ok_status();
}

}  // namespace

Status merge_attention_parts(const MergeParams& p, CUstream_st* stream) {
  ONEPASS_RETURN_IF_ERROR(check(p));
  const int64_t threads = p.rows * p.num_heads * (p.head_dim_v / 4);
  if (threads == 0) return ok_status();
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  if (blocks > 0x7fffffff) return invalid_argument("merge: rows: too many for one launch: ", p.rows);
  merge_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
  return launch_status("merge of attention parts");
}

}  // namespace onepass
