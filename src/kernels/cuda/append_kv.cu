// A block of threads for each new token and each query, and one for the lengths. A thread moves pieces of 8 elements:
// one, or the two that a rotation of halves mixes.
#include "kernels/cuda/append_kv.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <initializer_list>

#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

constexpr int kThreads = 128;
constexpr int kPiece = 8;

__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float x, __half& to) { to = __float2half_rn(x); }
__device__ inline void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

template <typename T>
struct alignas(16) Piece {
  T x[kPiece];
};

template <typename T>
__device__ inline Piece<T> load(const T* from) {
  return *reinterpret_cast<const Piece<T>*>(from);
}
template <typename T>
__device__ inline void store(T* to, const Piece<T>& piece) {
  *reinterpret_cast<Piece<T>*>(to) = piece;
}

// The request of row `row` and the row's number in it; request -1 for a row past the last request's end, as a graph has
// that was captured for more.
struct Place {
  int request = 0;
  int row = 0;
};

__device__ Place place_of(int row, const int32_t* cu_seqlens, int seqlen, int batch) {
  if (cu_seqlens == nullptr) return {row / seqlen, row % seqlen};
  if (row >= cu_seqlens[batch]) return {-1, 0};
  int low = 0, high = batch;  // the last request that does not begin after `row`
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (cu_seqlens[middle] <= row ? low : high) = middle;
  }
  return {low, row - cu_seqlens[low]};
}

__device__ int keys_held(const AppendKvParams& p, int request) {
  if (p.cache_seqlens != nullptr) return p.cache_seqlens[request];
  if (p.cu_seqlens_k != nullptr) return p.cu_seqlens_k[request + 1] - p.cu_seqlens_k[request];
  return p.seqlen_k;
}

__device__ int entry_of(const AppendKvParams& p, int request) {
  return p.cache_batch_idx != nullptr ? p.cache_batch_idx[request] : request;
}

__device__ int64_t capacity(const AppendKvParams& p) {
  return p.page_table != nullptr ? int64_t{p.page_size} * p.pages_per_request : p.page_size;
}

__device__ void write_lengths(const AppendKvParams& p) {
  for (int b = threadIdx.x; b < p.batch; b += kThreads) {
    const int pad = p.cache_leftpad != nullptr ? p.cache_leftpad[b] : 0;
    if (p.seqlens_k_out != nullptr) {
      int64_t keys = keys_held(p, b);
      if (p.k_new != nullptr) {
        keys += p.cu_seqlens_new != nullptr ? p.cu_seqlens_new[b + 1] - p.cu_seqlens_new[b] : p.seqlen_new;
        keys = min(keys, capacity(p));
      }
      p.seqlens_k_out[b] = static_cast<int>(max(keys - pad, int64_t{0}));
    }
    if (p.begins_out != nullptr) {
      p.begins_out[b] = pad + (p.cu_seqlens_k != nullptr ? p.cu_seqlens_k[b] : entry_of(p, b) * p.entry_rows);
    }
  }
}

// The angle of pair `pair` at `position`.
template <typename T>
__device__ float2 rotation(const AppendKvParams& p, int position, int pair) {
  if (position < 0 || position >= p.rotary_rows) return {__int_as_float(0x7fffffff), 0.0f};
  const int64_t at = int64_t{position} * (p.rotary_dim / 2) + pair;
  return {widen(static_cast<const T*>(p.rotary_cos)[at]), widen(static_cast<const T*>(p.rotary_sin)[at])};
}

template <typename T>
__device__ void rotate(T& a, T& b, const float2& angle) {
  const float x = widen(a), y = widen(b);
  narrow(x * angle.x - y * angle.y, a);
  narrow(y * angle.x + x * angle.y, b);
}

// Items of work in a head: pieces, but two pieces where halves are rotated.
__device__ int items_of_head(const AppendKvParams& p) {
  return (p.head_dim - (p.rotary_interleaved ? 0 : p.rotary_dim / 2)) / kPiece;
}

template <typename T>
__device__ void move_rotated(const AppendKvParams& p, const T* from, T* to, int item, int position) {
  const int half = p.rotary_dim / 2;
  if (p.rotary_interleaved || item * kPiece >= half) {
    const int d = item * kPiece + (p.rotary_interleaved ? 0 : half);
    Piece<T> piece = load(from + d);
    if (p.rotary_interleaved && d < p.rotary_dim) {
#pragma unroll
      for (int i = 0; i < kPiece; i += 2) rotate(piece.x[i], piece.x[i + 1], rotation<T>(p, position, (d + i) / 2));
    }
    store(to + d, piece);
    return;
  }
  const int d = item * kPiece;
  Piece<T> first = load(from + d), second = load(from + d + half);
#pragma unroll
  for (int i = 0; i < kPiece; ++i) rotate(first.x[i], second.x[i], rotation<T>(p, position, d + i));
  store(to + d, first);
  store(to + d + half, second);
}

template <typename T>
__device__ void move_query(const AppendKvParams& p, int row) {
  const Place place = place_of(row, p.cu_seqlens_q, p.seqlen_q, p.batch);
  if (place.request < 0) return;
  const int first = p.rotary_seqlens != nullptr ? p.rotary_seqlens[place.request] : keys_held(p, place.request);
  const int position = first + (p.rotate_queries_by_row ? place.row : 0);
  const T* from = static_cast<const T*>(p.q);
  from +=
      p.cu_seqlens_q != nullptr ? row * p.q_row_stride : place.request * p.q_batch_stride + place.row * p.q_row_stride;
  T* const to = static_cast<T*>(p.q_out) + int64_t{row} * p.num_heads * p.head_dim;
  const int items = items_of_head(p);
  for (int i = threadIdx.x; i < p.num_heads * items; i += kThreads) {
    const int head = i / items;
    move_rotated(p, from + head * p.q_head_stride, to + int64_t{head} * p.head_dim, i % items, position);
  }
}

template <typename T>
__device__ void move_key_and_value(const AppendKvParams& p, int row) {
  const Place place = place_of(row, p.cu_seqlens_new, p.seqlen_new, p.batch);
  if (place.request < 0) return;
  const int held = keys_held(p, place.request);
  const int64_t slot = int64_t{held} + place.row;
  if (slot < 0 || slot >= capacity(p)) return;
  const int position = (p.rotary_seqlens != nullptr ? p.rotary_seqlens[place.request] : held) + place.row;
  int64_t page = 0;
  if (p.page_table != nullptr) {
    page = p.page_table[place.request * p.page_table_stride + slot / p.page_size];
  } else {
    page = entry_of(p, place.request);
  }
  const int64_t page_row = slot % p.page_size;
  const bool whole = p.cu_seqlens_new != nullptr;
  const T* const k_from =
      static_cast<const T*>(p.k_new) +
      (whole ? row * p.k_new_row_stride : place.request * p.k_new_batch_stride + place.row * p.k_new_row_stride);
  const T* const v_from =
      static_cast<const T*>(p.v_new) +
      (whole ? row * p.v_new_row_stride : place.request * p.v_new_batch_stride + place.row * p.v_new_row_stride);
  T* const k_to = static_cast<T*>(p.k_cache) + page * p.k_page_stride + page_row * p.k_row_stride;
  T* const v_to = static_cast<T*>(p.v_cache) + page * p.v_page_stride + page_row * p.v_row_stride;
  const int items = items_of_head(p), pieces = p.head_dim_v / kPiece;
  const int of_k = p.num_heads_kv * items, of_v = p.num_heads_kv * pieces;
  for (int i = threadIdx.x; i < of_k + of_v; i += kThreads) {
    if (i < of_k) {
      const int head = i / items;
      move_rotated(p, k_from + head * p.k_new_head_stride, k_to + head * p.k_head_stride, i % items, position);
    } else {
      const int head = (i - of_k) / pieces, d = (i - of_k) % pieces * kPiece;
      store(v_to + head * p.v_head_stride + d, load(v_from + head * p.v_new_head_stride + d));
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) append_kv_kernel(const __grid_constant__ AppendKvParams p) {
  const int block = blockIdx.x;
  const int new_rows = p.k_new != nullptr ? p.total_new : 0;
  if (block == 0) {
    write_lengths(p);
  } else if (block <= new_rows) {
    move_key_and_value<T>(p, block - 1);
  } else {
    move_query<T>(p, block - 1 - new_rows);
  }
}

Status check(const AppendKvParams& p) {
  if (p.dtype != DType::kF16 && p.dtype != DType::kBF16) {
    return invalid_argument("append_kv: dtype: expected float16 or bfloat16, found ", to_string(p.dtype));
  }
  if (p.batch < 0) return invalid_argument("append_kv: batch: expected at least 0, found ", p.batch);
  const bool stores = p.k_new != nullptr, rotates = p.q != nullptr;
  if (stores != (p.v_new != nullptr)) return invalid_argument("append_kv: k_new and v_new: expected both or neither");
  if (stores && (p.k_cache == nullptr || p.v_cache == nullptr)) {
    return invalid_argument("append_kv: k_cache and v_cache: expected addresses, found a null one");
  }
  if (stores && (p.page_size <= 0 || p.num_heads_kv <= 0 || p.total_new < 0 ||
                 (p.cu_seqlens_new == nullptr && p.seqlen_new <= 0 && p.total_new > 0))) {
    return invalid_argument("append_kv: page_size, num_heads_kv and seqlen_new: expected at least 1, found ",
                            p.page_size, ", ", p.num_heads_kv, " and ", p.seqlen_new);
  }
  if (rotates && (p.q_out == nullptr || p.num_heads <= 0 || p.total_q < 0 ||
                  (p.cu_seqlens_q == nullptr && p.seqlen_q <= 0 && p.total_q > 0))) {
    return invalid_argument("append_kv: q_out, num_heads and seqlen_q: expected an address and at least 1, found ",
                            p.num_heads, " and ", p.seqlen_q);
  }
  if (p.rotary_dim < 0 || p.rotary_dim % 16 != 0 || p.rotary_dim > p.head_dim) {
    return invalid_argument("append_kv: rotary_dim: expected a multiple of 16 up to head_dim = ", p.head_dim,
                            ", found ", p.rotary_dim);
  }
  if (p.rotary_dim > 0 && (p.rotary_cos == nullptr || p.rotary_sin == nullptr)) {
    return invalid_argument("append_kv: rotary_cos and rotary_sin: expected addresses, found a null one");
  }
  for (int64_t n : {p.k_new_batch_stride, p.k_new_row_stride, p.k_new_head_stride, p.v_new_batch_stride,
                    p.v_new_row_stride, p.v_new_head_stride, p.k_page_stride, p.k_row_stride, p.k_head_stride,
                    p.v_page_stride, p.v_row_stride, p.v_head_stride, p.q_batch_stride, p.q_row_stride, p.q_head_stride,
                    int64_t{p.head_dim}, int64_t{p.head_dim_v}}) {
    if (n % kPiece != 0) {
      return invalid_argument("append_kv: head_dim, head_dim_v and strides: expected multiples of 8, found ", n);
    }
  }
  for (const void* address : {p.k_new, p.v_new, static_cast<const void*>(p.k_cache),
                              static_cast<const void*>(p.v_cache), p.q, static_cast<const void*>(p.q_out)}) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
      return invalid_argument("append_kv: k_new, v_new, k_cache, v_cache, q and q_out: expected multiples of 16 bytes");
    }
  }
  return ok_status();
}

}  // namespace

Status run_append_kv(const AppendKvParams& p, CUstream_st* stream) {
  ONEPASS_RETURN_IF_ERROR(check(p));
  if (p.batch == 0) return ok_status();
  const unsigned blocks = 1u + (p.k_new != nullptr ? p.total_new : 0) + (p.q != nullptr ? p.total_q : 0);
  if (p.dtype == DType::kF16) {
    append_kv_kernel<__half><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    append_kv_kernel<__nv_bfloat16><<<blocks, kThreads, 0, stream>>>(p);
  }
  return launch_status("append_kv");
}

}  // namespace onepass
