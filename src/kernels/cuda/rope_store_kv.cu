// Thread blocks take a token, several each when there are few: the angles' cosines and sines once into shared memory,
// then a group of lanes takes a head, each lane two pieces of 16 bytes: a pair to rotate, or two to copy. With a head
// in a group's registers, its norm is a few shuffles.
#include "kernels/cuda/rope_store_kv.h"

#include <algorithm>
#include <bit>
#include <initializer_list>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rms_norm.cuh"
#include "kernels/cuda/rotation.cuh"

namespace onepass {
namespace {

constexpr int kThreads = 256;

__device__ inline void fill_angles(const RopeStoreKvParams& p, int position, float2* angles) {
  for (int i = threadIdx.x; i < p.rotary_dim / 2; i += kThreads) {
    angles[i] = rotation(position, p.inv_freq[i], p.attention_factor);
  }
  __syncthreads();
}

// Where a head comes from and goes to, in elements.
struct Head {
  const void* from = nullptr;  // null: there is nothing to do
  void* to = nullptr;
  int64_t from_at = 0, to_at = 0;
  const float* norm = nullptr;
  int half = 0;  // elements up to here are rotated with those as many further on
  int size = 0;
  bool is_stored = false;  // in the pool, whose dtype is another
};

__device__ inline Head find_head(const RopeStoreKvParams& p, int64_t token, int64_t slot, int number) {
  const int of_q = p.q != nullptr ? p.num_heads : 0, half = p.rotary_dim / 2;
  if (number < of_q) {
    return {p.q,
            p.q_out,
            token * p.q_row_stride + number * p.q_head_stride,
            token * p.q_out_row_stride + number * p.q_out_head_stride,
            p.q_norm,
            half,
            p.head_dim,
            false};
  }
  if (slot < 0 || number >= of_q + 2 * p.num_heads_kv) return {};
  const int64_t page = slot / p.page_size, row = slot % p.page_size;
  int head = number - of_q;
  if (head < p.num_heads_kv) {
    return {p.k,
            p.k_pool,
            token * p.k_row_stride + head * p.k_head_stride,
            page * p.k_pool_page_stride + row * p.k_pool_row_stride + head * p.k_pool_head_stride,
            p.k_norm,
            half,
            p.head_dim,
            true};
  }
  head -= p.num_heads_kv;
  return {p.v,
          p.v_pool,
          token * p.v_row_stride + head * p.v_head_stride,
          page * p.v_pool_page_stride + row * p.v_pool_row_stride + head * p.v_pool_head_stride,
          nullptr,
          0,
          p.head_dim_v,
          true};
}

// A lane's two pieces of a head: a pair to rotate; behind the rotated elements, and where nothing is rotated, the
// pieces go to the lanes in turn.
template <typename T, typename Pool, int kCount>
struct Pieces {
  float a[kCount], b[kCount];
  int a_at, b_at;  // elements of the head; from its size on: none

  __device__ inline void load(const Head& head, int lane, int lanes) {
    const int pairs = head.half / kCount;
    a_at = lane < pairs ? lane * kCount : 2 * head.half + (lane - pairs) * kCount;
    b_at = lane < pairs ? a_at + head.half : pairs > 0 ? head.size : a_at + lanes * kCount;
    if (a_at < head.size) load_piece<T>(head.from, head.from_at + a_at, a);
    if (b_at < head.size) load_piece<T>(head.from, head.from_at + b_at, b);
  }

  // In the order of run_rms_norm_cuda's sums where the lanes are a power of two, so that the bits are the same.
  __device__ inline void normalize(const Head& head, int lanes, float eps) {
    float sum = 0.0f, sum_b = 0.0f;
    if (a_at < head.size) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum += a[i] * a[i];
    }
    if (b_at < head.size) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum_b += b[i] * b[i];
    }
    sum += sum_b;
    for (int lane = lanes / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    if (head.norm == nullptr) return;
    const float factor = rms_norm_factor(sum, head.size, eps);
    const auto scale = [&](int at, float(&x)[kCount]) {
      if (at >= head.size) return;
      float weight[kCount];
      load_piece<float>(head.norm, at, weight);
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = widen(narrow<T>(x[i] * (factor * weight[i])));
    };
    scale(a_at, a);
    scale(b_at, b);
  }

  __device__ inline void rotate(const Head& head, const float2* angles) {
    if (a_at >= head.half) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float2 angle = angles[a_at + i];
      const float x = a[i], y = b[i];
      a[i] = x * angle.x - y * angle.y;
      b[i] = y * angle.x + x * angle.y;
    }
  }

  __device__ inline void store(const Head& head) const {
    const auto put = [&](int at, const float(&x)[kCount]) {
      if (at >= head.size) return;
      if (head.is_stored) {
        store_piece<Pool>(head.to, head.to_at + at, x);
      } else {
        store_piece<T>(head.to, head.to_at + at, x);
      }
    };
    put(a_at, a);
    put(b_at, b);
  }
};

__device__ inline int64_t read_slot(const RopeStoreKvParams& p, int64_t token) {
  return p.slot_dtype == DType::kI64 ? int64_t{__ldcg(static_cast<const long long*>(p.slots) + token)}
                                     : int64_t{__ldcg(static_cast<const int*>(p.slots) + token)};
}

// Groups of `lanes`, a power of two, hold a head at two pieces a lane.
template <typename T, typename Pool, int kCount>
__global__ void __launch_bounds__(kThreads)
    rope_store_kv_kernel(const __grid_constant__ RopeStoreKvParams p, const int lanes) {
  extern __shared__ float2 angles[];
  const int64_t token = blockIdx.x;
  const int groups = kThreads / lanes, group = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  const int heads = (p.q != nullptr ? p.num_heads : 0) + 2 * p.num_heads_kv;
  // An earlier kernel may still be writing the position: the angles are right in nearly every case, and made again
  // where it has changed.
  const int early_position = p.rotary_dim > 0 ? __ldcg(p.positions + token) : 0;
  fill_angles(p, early_position, angles);
  wait_for_earlier_kernels();
  let_next_kernel_start();

  const int64_t slot = read_slot(p, token);
  const int position = p.rotary_dim > 0 ? __ldcg(p.positions + token) : 0;
  bool is_first = true;
  for (int base = blockIdx.y * groups; base < heads; base += gridDim.y * groups) {
    const Head head = find_head(p, token, slot, base + group);
    Pieces<T, Pool, kCount> pieces;
    pieces.load(head, lane, lanes);
    if (is_first && position != early_position) {
      __syncthreads();
      fill_angles(p, position, angles);
    }
    is_first = false;
    if (p.q_norm != nullptr || p.k_norm != nullptr) pieces.normalize(head, lanes, p.norm_eps);
    pieces.rotate(head, angles);
    pieces.store(head);
  }
}

// Any size, any alignment: a warp takes a head, element by element, with a norm in two passes.
template <typename T, typename Pool>
__global__ void __launch_bounds__(kThreads) rope_store_kv_any_kernel(const __grid_constant__ RopeStoreKvParams p) {
  extern __shared__ float2 angles[];
  constexpr int kWarps = kThreads / 32;
  const int64_t token = blockIdx.x;
  const int heads = (p.q != nullptr ? p.num_heads : 0) + 2 * p.num_heads_kv;
  wait_for_earlier_kernels();
  let_next_kernel_start();
  if (p.rotary_dim > 0) fill_angles(p, __ldcg(p.positions + token), angles);
  const int64_t slot = read_slot(p, token);
  for (int number = blockIdx.y * kWarps + threadIdx.x / 32; number < heads; number += gridDim.y * kWarps) {
    const Head head = find_head(p, token, slot, number);
    const int lane = threadIdx.x % 32;
    const T* from = static_cast<const T*>(head.from) + head.from_at;
    float factor = 1.0f;
    if (head.norm != nullptr) {
      float sum = 0.0f;
      for (int d = lane; d < head.size; d += 32) sum += widen(from[d]) * widen(from[d]);
      factor = rms_norm_factor(sum_over_lanes<32>(sum), head.size, p.norm_eps);
    }
    const auto load = [&](int d) {
      const float x = widen(from[d]);
      return head.norm == nullptr ? x : widen(narrow<T>(x * (factor * head.norm[d])));
    };
    const auto store = [&](int d, float x) {
      if (head.is_stored) {
        static_cast<Pool*>(head.to)[head.to_at + d] = narrow<Pool>(x);
      } else {
        static_cast<T*>(head.to)[head.to_at + d] = narrow<T>(x);
      }
    };
    for (int i = lane; i < head.size - head.half; i += 32) {
      if (i >= head.half) {
        store(i + head.half, load(i + head.half));
        continue;
      }
      const float2 angle = angles[i];
      const float x = load(i), y = load(i + head.half);
      store(i, x * angle.x - y * angle.y);
      store(i + head.half, y * angle.x + x * angle.y);
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
  for (const void* address :
       {p.q, static_cast<const void*>(p.q_out), p.k, p.v, static_cast<const void*>(p.k_pool),
        static_cast<const void*>(p.v_pool), static_cast<const void*>(p.q_norm), static_cast<const void*>(p.k_norm)}) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return false;
  }
  return true;
}

// The lanes that hold a head in pieces of `count` elements; 0: more than a warp has.
int lanes_of(const RopeStoreKvParams& p, int count) {
  const int half = p.rotary_dim / 2;
  const auto pieces = [&](int elements) { return (elements + count - 1) / count; };
  const int of_qk = half > 0 ? pieces(half) + pieces(p.head_dim - 2 * half) : (pieces(p.head_dim) + 1) / 2;
  const auto lanes = std::bit_ceil(static_cast<unsigned>(std::max(of_qk, (pieces(p.head_dim_v) + 1) / 2)));
  return lanes <= 32 ? static_cast<int>(lanes) : 0;
}

template <typename T, typename Pool>
Status launch(const RopeStoreKvParams& p, CUstream_st* stream) {
  constexpr int kCount = sizeof(T) == 2 ? 8 : 4;
  const int lanes = goes_by(p, kCount) ? lanes_of(p, kCount) : 0;
  const int64_t groups = kThreads / (lanes > 0 ? lanes : 32);
  const int64_t heads = (p.q != nullptr ? p.num_heads : 0) + 2 * int64_t{p.num_heads_kv};
  // About 2,000 blocks hide each other's latencies.
  const int64_t useful = (heads + groups - 1) / groups, wanted = (2048 + p.num_tokens - 1) / p.num_tokens;
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(p.num_tokens), static_cast<unsigned>(std::min(useful, wanted))),
      .threads = kThreads,
      .shared_bytes = p.rotary_dim / 2 * sizeof(float2)};
  if (lanes == 0) return launch_early("rope_store_kv", rope_store_kv_any_kernel<T, Pool>, shape, stream, p);
  return launch_early("rope_store_kv", rope_store_kv_kernel<T, Pool, kCount>, shape, stream, p, lanes);
}

template <typename T>
Status launch(const RopeStoreKvParams& p, CUstream_st* stream) {
  if (p.pool_dtype == DType::kF32) return launch<T, float>(p, stream);
  if (p.pool_dtype == DType::kF16) return launch<T, __half>(p, stream);
  return launch<T, __nv_bfloat16>(p, stream);
}

}  // namespace

Status run_rope_store_kv(const RopeStoreKvParams& p, CUstream_st* stream) {
  ONEPASS_RETURN_IF_ERROR(check(p));
  if (p.num_tokens == 0) return ok_status();
  return with_element_type(p.dtype, [&](auto tag) { return launch<typename decltype(tag)::type>(p, stream); });
}

}  // namespace onepass
