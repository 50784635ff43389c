// One thread block for each token (several for each when there are few): the angles' cosines and sines once into shared
// memory, then every thread takes pieces of 16 bytes: a pair of them to rotate, or one to copy.
#include "kernels/cuda/rope_store_kv.h"

#include <initializer_list>

#include "kernels/cuda/elements.cuh"
#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

constexpr int kThreads = 256;

// cos and sin of position * frequency. The angle is reduced in double, as float32 loses the position at 100k tokens.
__device__ inline float2 rotation(int position, double inv_freq, float factor) {
  const double turns = position * (inv_freq * 0.15915494309189535);
  float sine, cosine;
  sincospif(2.0f * static_cast<float>(turns - rint(turns)), &sine, &cosine);
  return {cosine * factor, sine * factor};
}

// The numbered piece of a head: first the pairs to rotate, kCount elements and kCount half a rotation on, then the
// others.
template <typename From, typename To, int kCount>
__device__ inline void move_piece(const void* source, void* destination, int64_t from, int64_t to, int number, int half,
                                  const float2* angles) {
  const int pairs = half / kCount;
  float a[kCount];
  if (number >= pairs) {
    const int d = 2 * half + (number - pairs) * kCount;
    load_piece<From>(source, from + d, a);
    store_piece<To>(destination, to + d, a);
    return;
  }
  const int d = number * kCount;
  float b[kCount];
  load_piece<From>(source, from + d, a);
  load_piece<From>(source, from + d + half, b);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float2 angle = angles[d + i];
    const float x = a[i], y = b[i];
    a[i] = x * angle.x - y * angle.y;
    b[i] = y * angle.x + x * angle.y;
  }
  store_piece<To>(destination, to + d, a);
  store_piece<To>(destination, to + d + half, b);
}

template <typename T, typename Pool, int kCount>
__global__ void __launch_bounds__(kThreads) rope_store_kv_kernel(const __grid_constant__ RopeStoreKvParams p) {
  extern __shared__ float2 angles[];
  const int64_t token = blockIdx.x;
  const int half = p.rotary_dim / 2;
  for (int i = threadIdx.x; i < half; i += kThreads) {
    angles[i] = rotation(p.positions[token], p.inv_freq[i], p.attention_factor);
  }
  int64_t slot = p.slot_dtype == DType::kI64 ? static_cast<const int64_t*>(p.slots)[token]
                                             : int64_t{static_cast<const int32_t*>(p.slots)[token]};
  const int64_t page = slot / p.page_size, row = slot % p.page_size;
  __syncthreads();

  // Pieces of q, then of k, then of v.
  const int per_head = (p.head_dim - half) / kCount, per_head_v = p.head_dim_v / kCount;
  const int of_q = p.q != nullptr ? p.num_heads * per_head : 0;
  const int of_k = slot >= 0 ? p.num_heads_kv * per_head : 0;
  const int of_v = slot >= 0 ? p.num_heads_kv * per_head_v : 0;
  for (int i = blockIdx.y * kThreads + threadIdx.x; i < of_q + of_k + of_v; i += gridDim.y * kThreads) {
    if (i < of_q) {
      const int head = i / per_head;
      move_piece<T, T, kCount>(p.q, p.q_out, token * p.q_row_stride + head * p.q_head_stride,
                               token * p.q_out_row_stride + head * p.q_out_head_stride, i % per_head, half, angles);
    } else if (i < of_q + of_k) {
      const int head = (i - of_q) / per_head;
      move_piece<T, Pool, kCount>(p.k, p.k_pool, token * p.k_row_stride + head * p.k_head_stride,
                                  page * p.k_pool_page_stride + row * p.k_pool_row_stride + head * p.k_pool_head_stride,
                                  (i - of_q) % per_head, half, angles);
    } else {
      const int head = (i - of_q - of_k) / per_head_v;
      move_piece<T, Pool, kCount>(p.v, p.v_pool, token * p.v_row_stride + head * p.v_head_stride,
                                  page * p.v_pool_page_stride + row * p.v_pool_row_stride + head * p.v_pool_head_stride,
                                  (i - of_q - of_k) % per_head_v, 0, angles);
    }
  }
}

Status check(const RopeStoreKvParams& p) {
  if (!is_float_dtype(p.dtype) || !is_float_dtype(p.pool_dtype)) {
    return invalid_argument("rope_store_kv: dtype and pool_dtype: expected float32, float16 or bfloat16, found ",
                            to_string(p.dtype), " and ", to_string(p.pool_dtype));
  }
  if (p.slot_dtype != DType::kI32 && p.slot_dtype != DType::kI64) {
    return invalid_argument("rope_store_kv: slot_dtype: expected int32 or int64, found ", to_string(p.slot_dtype));
  }
  if (p.num_heads_kv <= 0 || p.head_dim <= 0 || p.head_dim_v <= 0 || p.page_size <= 0) {
    return invalid_argument(
        "rope_store_kv: num_heads_kv, head_dim, head_dim_v and page_size: expected at least 1, found ", p.num_heads_kv,
        ", ", p.head_dim, ", ", p.head_dim_v, " and ", p.page_size);
  }
  if (p.rotary_dim < 0 || p.rotary_dim % 2 != 0 || p.rotary_dim > p.head_dim) {
    return invalid_argument("rope_store_kv: rotary_dim: expected an even number from 0 to head_dim = ", p.head_dim,
                            ", found ", p.rotary_dim);
  }
  if (p.num_tokens < 0 || p.num_tokens > 0x7fffffff) {
    return invalid_argument("rope_store_kv: num_tokens: expected 0 to 2147483647, found ", p.num_tokens);
  }
  if (p.k == nullptr || p.v == nullptr || p.k_pool == nullptr || p.v_pool == nullptr || p.slots == nullptr ||
      (p.q != nullptr && p.q_out == nullptr) ||
      (p.rotary_dim > 0 && (p.positions == nullptr || p.inv_freq == nullptr))) {
    return invalid_argument("rope_store_kv: expected addresses, found a null one");
  }
  return ok_status();
}

// Whether all rows and heads begin and are cut at multiples of `count` elements, which their addresses allow.
bool goes_by(const RopeStoreKvParams& p, int count) {
  for (int64_t n : {p.q_row_stride, p.q_head_stride, p.q_out_row_stride, p.q_out_head_stride, p.k_row_stride,
                    p.k_head_stride, p.v_row_stride, p.v_head_stride, p.k_pool_page_stride, p.k_pool_row_stride,
                    p.k_pool_head_stride, p.v_pool_page_stride, p.v_pool_row_stride, p.v_pool_head_stride,
                    int64_t{p.rotary_dim / 2}, int64_t{p.head_dim}, int64_t{p.head_dim_v}}) {
    if (n % count != 0) return false;
  }
  for (const void* address : {p.q, static_cast<const void*>(p.q_out), p.k, p.v, static_cast<const void*>(p.k_pool),
                              static_cast<const void*>(p.v_pool)}) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return false;
  }
  return true;
}

template <typename T, typename Pool>
void launch(const RopeStoreKvParams& p, CUstream_st* stream) {
  constexpr int kCount = sizeof(T) == 2 ? 8 : 4;
  const int64_t pieces = (int64_t{p.num_heads} + 2 * p.num_heads_kv) * p.head_dim / (2 * kCount);
  // About 2,000 blocks hide each other's latencies.
  const int64_t useful = (pieces + kThreads - 1) / kThreads, wanted = (2048 + p.num_tokens - 1) / p.num_tokens;
  const dim3 grid(static_cast<unsigned>(p.num_tokens), static_cast<unsigned>(useful < wanted ? useful : wanted));
  const size_t shared = p.rotary_dim / 2 * sizeof(float2);
  if (goes_by(p, kCount)) {
    rope_store_kv_kernel<T, Pool, kCount><<<grid, kThreads, shared, stream>>>(p);
  } else {
    rope_store_kv_kernel<T, Pool, 1><<<grid, kThreads, shared, stream>>>(p);
  }
}

template <typename T>
void launch(const RopeStoreKvParams& p, CUstream_st* stream) {
  if (p.pool_dtype == DType::kF32) return launch<T, float>(p, stream);
  if (p.pool_dtype == DType::kF16) return launch<T, __half>(p, stream);
  launch<T, __nv_bfloat16>(p, stream);
}

}  // namespace

Status run_rope_store_kv(const RopeStoreKvParams& p, CUstream_st* stream) {
  ONEPASS_RETURN_IF_ERROR(check(p));
  if (p.num_tokens == 0) return ok_status();
  if (p.dtype == DType::kF32) {
    launch<float>(p, stream);
  } else if (p.dtype == DType::kF16) {
    launch<__half>(p, stream);
  } else {
    launch<__nv_bfloat16>(p, stream);
  }
  return launch_status("rope_store_kv");
}

}  // namespace onepass
