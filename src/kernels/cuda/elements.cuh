// Elements of the three stored dtypes on a GPU: conversions, pieces of several elements, and a kernel chosen by dtype.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "tensor/dtype.h"

namespace onepass {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T>
__device__ inline T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) {
  return x;
}
template <>
__device__ inline __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// kCount elements that are loaded and stored at once, by 16 bytes at most.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Piece {
  T values[kCount];
};

template <typename T, int kCount>
__device__ inline void load_piece(const void* data, int64_t at, float (&to)[kCount]) {
  const auto piece = *reinterpret_cast<const Piece<T, kCount>*>(static_cast<const T*>(data) + at);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = widen(piece.values[i]);
}

template <typename T, int kCount>
__device__ inline void store_piece(void* data, int64_t at, const float (&from)[kCount]) {
  Piece<T, kCount> piece;
#pragma unroll
  for (int i = 0; i < kCount; ++i) piece.values[i] = narrow<T>(from[i]);
  *reinterpret_cast<Piece<T, kCount>*>(static_cast<T*>(data) + at) = piece;
}

inline bool is_float_dtype(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

// Whether rows of this address and these strides can be taken in pieces of `count` elements of 16 bytes or a multiple.
inline bool goes_by_pieces(const void* data, int count, int64_t cols, int64_t stride, int64_t other_stride = 0) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && cols % count == 0 && stride % count == 0 &&
         other_stride % count == 0;
}

template <typename T>
struct TypeTag {
  using type = T;
};

// use(TypeTag<element type of dtype>()).
template <typename Use>
auto with_element_type(DType dtype, const Use& use) {
  if (dtype == DType::kF32) return use(TypeTag<float>());
  if (dtype == DType::kF16) return use(TypeTag<__half>());
  return use(TypeTag<__nv_bfloat16>());
}

}  // namespace onepass
