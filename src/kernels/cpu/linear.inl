// Tiles of matrix products, for the instruction set that the including file names by ONEPASS_ISA and the compiler's
// flags.
//
// A register tile is kTileRows rows of activations by four outputs: with AVX-512, 24 of the 32 registers accumulate,
// and ten loads feed 24 multiplications, so that arithmetic and not the L1 cache sets the pace.
#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/isa_kernels.h"

namespace onepass::cpu::ONEPASS_ISA {
namespace {

constexpr int kTileOutputs = 4;

#if defined(__AVX512F__)

constexpr int kTileRows = 6;
struct Vec {
  static constexpr int kLanes = 16;
  __m512 v;
};
inline Vec vec_zero() { return {_mm512_setzero_ps()}; }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec vec_load_f32(const void* p) { return {_mm512_loadu_ps(p)}; }
inline Vec vec_load_f16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }
inline Vec vec_load_bf16(const void* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// The sums over the lanes of four vectors.
inline __m128 vec_sums(Vec a, Vec b, Vec c, Vec d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  const __m512 abcd = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                                    _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

#elif defined(__AVX2__)

constexpr int kTileRows = 3;
struct Vec {
  static constexpr int kLanes = 8;
  __m256 v;
};
inline Vec vec_zero() { return {_mm256_setzero_ps()}; }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec vec_load_f32(const void* p) { return {_mm256_loadu_ps(static_cast<const float*>(p))}; }
inline Vec vec_load_f16(const void* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)))}; }
inline Vec vec_load_bf16(const void* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
inline __m128 vec_sums(Vec a, Vec b, Vec c, Vec d) {
  const __m256 abcd = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
  return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

#else

constexpr int kTileRows = 2;
struct Vec {
  static constexpr int kLanes = 4;
  __m128 v;
};
inline Vec vec_zero() { return {_mm_setzero_ps()}; }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm_add_ps(_mm_mul_ps(a.v, b.v), c.v)}; }
inline Vec vec_load_f32(const void* p) { return {_mm_loadu_ps(static_cast<const float*>(p))}; }
inline Vec vec_load_bf16(const void* p) {
  const __m128i narrow = _mm_loadl_epi64(static_cast<const __m128i*>(p));
  return {_mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), narrow))};
}
inline Vec vec_load_f16(const void* p) {
  // Exponent and mantissa moved into place and rescaled by 2^112, which puts subnormals right too; infinities and NaN
  // apart.
  const __m128i bits = _mm_unpacklo_epi16(_mm_loadl_epi64(static_cast<const __m128i*>(p)), _mm_setzero_si128());
  const __m128i sign = _mm_slli_epi32(_mm_and_si128(bits, _mm_set1_epi32(0x8000)), 16);
  const __m128i magnitude = _mm_and_si128(bits, _mm_set1_epi32(0x7fff));
  const __m128 scaled = _mm_mul_ps(_mm_castsi128_ps(_mm_slli_epi32(magnitude, 13)), _mm_set1_ps(0x1p112f));
  const __m128i special = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7bff));
  const __m128i exponent = _mm_and_si128(special, _mm_set1_epi32(0x7f800000));
  return {_mm_castsi128_ps(_mm_or_si128(_mm_or_si128(_mm_castps_si128(scaled), exponent), sign))};
}
inline __m128 vec_sums(Vec a, Vec b, Vec c, Vec d) {
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a.v, b.v), _mm_unpackhi_ps(a.v, b.v));
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c.v, d.v), _mm_unpackhi_ps(c.v, d.v));
  return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}

#endif

// How a vector of weights meets a vector of activations, for each dtype of weights. kStep: columns of one vector.
struct F32 {
  using W = float;
  using X = float;
  using WVec = Vec;
  using XVec = Vec;
  static constexpr int kStep = Vec::kLanes;
  static WVec load_w(const W* p) { return vec_load_f32(p); }
  static XVec load_x(const X* p) { return vec_load_f32(p); }
  static Vec multiply_add(WVec w, XVec x, Vec sum) { return vec_fma(w, x, sum); }
};

struct F16 : F32 {
  using W = uint16_t;
  static WVec load_w(const W* p) { return vec_load_f16(p); }
};

#if defined(__AVX512BF16__)
struct BF16 {
  using W = uint16_t;
  using X = uint16_t;
  using WVec = __m512i;
  using XVec = __m512i;
  static constexpr int kStep = 32;
  static WVec load_w(const W* p) { return _mm512_loadu_si512(p); }
  static XVec load_x(const X* p) { return _mm512_loadu_si512(p); }
  static Vec multiply_add(WVec w, XVec x, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x))};
  }
};
#else
struct BF16 : F32 {
  using W = uint16_t;
  static WVec load_w(const W* p) { return vec_load_bf16(p); }
};
#endif

// One vector of columns.
template <typename Format, int kRows>
__attribute__((always_inline)) inline void multiply_add(const typename Format::W* const (&w)[kTileOutputs],
                                                        int64_t w_col, const typename Format::X* const (&x)[kRows],
                                                        int64_t x_col, Vec (&acc)[kRows][kTileOutputs]) {
  typename Format::WVec weights[kTileOutputs];
#pragma GCC unroll 8
  for (int o = 0; o < kTileOutputs; ++o) weights[o] = Format::load_w(w[o] + w_col);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const typename Format::XVec activations = Format::load_x(x[r] + x_col);
#pragma GCC unroll 8
    for (int o = 0; o < kTileOutputs; ++o) acc[r][o] = Format::multiply_add(weights[o], activations, acc[r][o]);
  }
}

// kRows rows by kTileOutputs outputs; rows of weights past `outputs` are read from the last one and their sums dropped.
template <typename Format, int kRows, bool kPrefetch>
inline void tile(const LinearTileArgs& args, int64_t row, int64_t output) {
  using W = typename Format::W;
  using X = typename Format::X;
  const int outputs = static_cast<int>(args.outputs - output < kTileOutputs ? args.outputs - output : kTileOutputs);
  const W* w[kTileOutputs];
  const X* x[kRows];
  Vec acc[kRows][kTileOutputs];
  for (int o = 0; o < kTileOutputs; ++o) {
    w[o] = static_cast<const W*>(args.w) + (output + (o < outputs ? o : outputs - 1)) * args.w_row_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    x[r] = static_cast<const X*>(args.x) + (row + r) * args.x_row_stride;
#pragma GCC unroll 8
    for (int o = 0; o < kTileOutputs; ++o) acc[r][o] = vec_zero();
  }
  // The next outputs' rows lie behind these. (At 1 row a thread reads about 14 bytes a cycle: four rows ahead, 7 KB or
  // more, are 500 cycles, the latency of memory. The hardware's prefetcher stops at each 4 KiB page.)
  const int64_t ahead = kTileOutputs * args.w_row_stride;
  int64_t col = 0;
  for (; col + Format::kStep <= args.cols; col += Format::kStep) {
    if constexpr (kPrefetch) {
      for (int o = 0; o < kTileOutputs; ++o) __builtin_prefetch(w[o] + col + ahead);
    }
    multiply_add<Format, kRows>(w, col, x, col, acc);
  }
  if (col < args.cols) {
    // The last columns, filled up with zeros: what follows a row in memory may be anything. (Copied as bytes: weights
    // lie at any alignment.)
    W tails[kTileOutputs][Format::kStep] = {};
    const W* tail[kTileOutputs];
    for (int o = 0; o < kTileOutputs; ++o) {
      __builtin_memcpy(tails[o], w[o] + col, static_cast<size_t>(args.cols - col) * sizeof(W));
      tail[o] = tails[o];
    }
    multiply_add<Format, kRows>(tail, 0, x, col, acc);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    alignas(16) float block_sums[4];
    _mm_store_ps(block_sums, vec_sums(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
    float* const sums = args.sums + (row + r) * args.sums_stride + output;
    for (int o = 0; o < outputs; ++o) sums[o] = args.first ? block_sums[o] : sums[o] + block_sums[o];
  }
}

template <typename Format, int kRows, bool kPrefetch>
void outputs_of_rows(const LinearTileArgs& args, int64_t row) {
  for (int64_t output = 0; output < args.outputs; output += kTileOutputs)
    tile<Format, kRows, kPrefetch>(args, row, output);
}

template <typename Format, bool kPrefetch>
void product(const LinearTileArgs& args) {
  int64_t row = 0;
  for (; row + kTileRows <= args.rows; row += kTileRows) {
    if (row == 0) {
      outputs_of_rows<Format, kTileRows, kPrefetch>(args, row);
    } else {
      outputs_of_rows<Format, kTileRows, false>(args, row);
    }
  }
  switch (args.rows - row) {
#if defined(__AVX512F__)
    case 5:
      return outputs_of_rows<Format, 5, kPrefetch>(args, row);
    case 4:
      return outputs_of_rows<Format, 4, kPrefetch>(args, row);
    case 3:
      return outputs_of_rows<Format, 3, kPrefetch>(args, row);
#endif
#if defined(__AVX2__)
    case 2:
      return outputs_of_rows<Format, 2, kPrefetch>(args, row);
#endif
    case 1:
      return outputs_of_rows<Format, 1, kPrefetch>(args, row);
    default:
      return;
  }
}

template <typename Format>
void linear(const LinearTileArgs& args) {
  if (args.prefetch) {
    product<Format, true>(args);
  } else {
    product<Format, false>(args);
  }
}

}  // namespace

extern const LinearKernels kLinearKernels;
const LinearKernels kLinearKernels = {
    .f32 = linear<F32>,
    .f16 = linear<F16>,
    .bf16 = linear<BF16>,
#if defined(__AVX512BF16__)
    .bf16_rounds_x = true,
#else
    .bf16_rounds_x = false,
#endif
    .max_rows = kTileRows,
};

}  // namespace onepass::cpu::ONEPASS_ISA
