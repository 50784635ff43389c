// The matrix product of a warpgroup, D[64, N] += A[64, 16] B[16, N] in float32:
//  - scores:  A = 64 rows and B = N rows, both in shared memory, what is summed over innermost: Q and K of attention, x
//             and the weights of a dense layer;
//  - values:  A = attention's probabilities in registers, B = 16 rows of V in shared memory, head_dim innermost (so B
//  is
//             transposed by the instruction).
// Shared memory is in panels: 64 elements (128 bytes) of a row wide, rows at 128 bytes, 16-byte chunks swizzled as
// CU_TENSOR_MAP_SWIZZLE_128B does, each panel 1024-byte aligned. Thread t of the warpgroup has of D rows 16 (t / 32) +
// t % 32 / 4 and 8 more, and of every 8 columns 2 (t % 4) and the next: d[4 i], d[4 i + 1] of the first row, d[4 i +
// 2], d[4 i + 3] of the second.
//
// The accumulators of a product in flight must not be touched before wgmma_wait; wgmma_wait takes those it makes ready
// as operands, so that the compiler cannot move their use before it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace onepass::hopper {

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending groups are in flight.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kCount>
__device__ inline void wgmma_touch(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ inline void wgmma_touch(uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// Matrix descriptors: where in shared memory (bits 0-13, in units of 16 bytes), the stride between panels (16-29),
// between groups of 8 rows (32-45), and the swizzle (62: 128 bytes).
__device__ inline uint64_t row_descriptor(uint32_t shared) {
  return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 16) | ((shared & 0x3FFFF) >> 4);
}
__device__ inline uint64_t column_descriptor(uint32_t shared, uint32_t panel_bytes) {
  return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{panel_bytes >> 4} << 16) |
         ((shared & 0x3FFFF) >> 4);
}

// Operand lists. Operands are numbered, the accumulators first, so each width needs its own.
#define ONEPASS_R8(a, b, c, d, e, f, g, h) "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h
#define ONEPASS_R16 ONEPASS_R8(0, 1, 2, 3, 4, 5, 6, 7) "," ONEPASS_R8(8, 9, 10, 11, 12, 13, 14, 15)
#define ONEPASS_R24 ONEPASS_R16 "," ONEPASS_R8(16, 17, 18, 19, 20, 21, 22, 23)
#define ONEPASS_R32 ONEPASS_R24 "," ONEPASS_R8(24, 25, 26, 27, 28, 29, 30, 31)
#define ONEPASS_R40 ONEPASS_R32 "," ONEPASS_R8(32, 33, 34, 35, 36, 37, 38, 39)
#define ONEPASS_R48 ONEPASS_R40 "," ONEPASS_R8(40, 41, 42, 43, 44, 45, 46, 47)
#define ONEPASS_R56 ONEPASS_R48 "," ONEPASS_R8(48, 49, 50, 51, 52, 53, 54, 55)
#define ONEPASS_R64 ONEPASS_R56 "," ONEPASS_R8(56, 57, 58, 59, 60, 61, 62, 63)
#define ONEPASS_R80 \
  ONEPASS_R64 "," ONEPASS_R8(64, 65, 66, 67, 68, 69, 70, 71) "," ONEPASS_R8(72, 73, 74, 75, 76, 77, 78, 79)
#define ONEPASS_R88 ONEPASS_R80 "," ONEPASS_R8(80, 81, 82, 83, 84, 85, 86, 87)
#define ONEPASS_R96 ONEPASS_R88 "," ONEPASS_R8(88, 89, 90, 91, 92, 93, 94, 95)
#define ONEPASS_R112 \
  ONEPASS_R96 "," ONEPASS_R8(96, 97, 98, 99, 100, 101, 102, 103) "," ONEPASS_R8(104, 105, 106, 107, 108, 109, 110, 111)
#define ONEPASS_R128 \
  ONEPASS_R112       \
  "," ONEPASS_R8(112, 113, 114, 115, 116, 117, 118, 119) "," ONEPASS_R8(120, 121, 122, 123, 124, 125, 126, 127)
#define ONEPASS_F8(b)                                                                                         \
  "+f"(d[b]), "+f"(d[b + 1]), "+f"(d[b + 2]), "+f"(d[b + 3]), "+f"(d[b + 4]), "+f"(d[b + 5]), "+f"(d[b + 6]), \
      "+f"(d[b + 7])
#define ONEPASS_F16 ONEPASS_F8(0), ONEPASS_F8(8)
#define ONEPASS_F24 ONEPASS_F16, ONEPASS_F8(16)
#define ONEPASS_F32 ONEPASS_F24, ONEPASS_F8(24)
#define ONEPASS_F40 ONEPASS_F32, ONEPASS_F8(32)
#define ONEPASS_F48 ONEPASS_F40, ONEPASS_F8(40)
#define ONEPASS_F56 ONEPASS_F48, ONEPASS_F8(48)
#define ONEPASS_F64 ONEPASS_F56, ONEPASS_F8(56)
#define ONEPASS_F80 ONEPASS_F64, ONEPASS_F8(64), ONEPASS_F8(72)
#define ONEPASS_F88 ONEPASS_F80, ONEPASS_F8(80)
#define ONEPASS_F96 ONEPASS_F88, ONEPASS_F8(88)
#define ONEPASS_F112 ONEPASS_F96, ONEPASS_F8(96), ONEPASS_F8(104)
#define ONEPASS_F128 ONEPASS_F112, ONEPASS_F8(112), ONEPASS_F8(120)

// n columns, c = n / 2 accumulators, then the numbers of the operands that follow them.
#define ONEPASS_WGMMA_SHARED(n, c, type, a, b, s)                                                                   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #s ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type \
               "." type " {" ONEPASS_R##c "}, %" #a ", %" #b ", p, 1, 1, 0, 0;\n}\n"                                \
               : ONEPASS_F##c                                                                                       \
               : "l"(a_desc), "l"(b_desc), "r"(accumulate))
#define ONEPASS_WGMMA_REGISTERS(n, c, type, a0, a1, a2, a3, b, s)                                                   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #s ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type \
               "." type " {" ONEPASS_R##c "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", p, 1, 1, 1;\n}\n"  \
               : ONEPASS_F##c                                                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_desc), "r"(accumulate))

// d = A B, or d += A B when `accumulate` is 1. kN = 2 * kCount columns.
template <typename T, int kCount>
__device__ inline void wgmma_scores(float (&d)[kCount], uint64_t a_desc, uint64_t b_desc, int accumulate) {
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
  static_assert(kCount == 16 || kCount == 24 || kCount == 32 || kCount == 40 || kCount == 48 || kCount == 56 ||
                kCount == 64 || kCount == 80 || kCount == 88 || kCount == 96 || kCount == 112);
#define ONEPASS_CASE(n, c, a, b, s)                                   \
  if constexpr (kCount == c) {                                        \
    if constexpr (kBf16) ONEPASS_WGMMA_SHARED(n, c, "bf16", a, b, s); \
    if constexpr (!kBf16) ONEPASS_WGMMA_SHARED(n, c, "f16", a, b, s); \
  }
  ONEPASS_CASE(32, 16, 16, 17, 18)
  ONEPASS_CASE(48, 24, 24, 25, 26)
  ONEPASS_CASE(64, 32, 32, 33, 34)
  ONEPASS_CASE(80, 40, 40, 41, 42)
  ONEPASS_CASE(96, 48, 48, 49, 50)
  ONEPASS_CASE(112, 56, 56, 57, 58)
  ONEPASS_CASE(128, 64, 64, 65, 66)
  ONEPASS_CASE(160, 80, 80, 81, 82)
  ONEPASS_CASE(176, 88, 88, 89, 90)
  ONEPASS_CASE(192, 96, 96, 97, 98)
  ONEPASS_CASE(224, 112, 112, 113, 114)
#undef ONEPASS_CASE
}

template <typename T, int kCount>
__device__ inline void wgmma_values(float (&d)[kCount], const uint32_t* a, uint64_t b_desc, int accumulate) {
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
  static_assert(kCount == 32 || kCount == 64 || kCount == 96 || kCount == 128);
#define ONEPASS_CASE(n, c, a0, a1, a2, a3, b, s)                                      \
  if constexpr (kCount == c) {                                                        \
    if constexpr (kBf16) ONEPASS_WGMMA_REGISTERS(n, c, "bf16", a0, a1, a2, a3, b, s); \
    if constexpr (!kBf16) ONEPASS_WGMMA_REGISTERS(n, c, "f16", a0, a1, a2, a3, b, s); \
  }
  ONEPASS_CASE(64, 32, 32, 33, 34, 35, 36, 37)
  ONEPASS_CASE(128, 64, 64, 65, 66, 67, 68, 69)
  ONEPASS_CASE(192, 96, 96, 97, 98, 99, 100, 101)
  ONEPASS_CASE(256, 128, 128, 129, 130, 131, 132, 133)
#undef ONEPASS_CASE
}

}  // namespace onepass::hopper
