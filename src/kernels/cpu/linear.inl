// The matrix product of one panel, for the instruction set that the including file names by ONEPASS_ISA and the
// compiler's flags. Register tile: kRows rows by all 64 outputs with AVX-512 (6 x 4 of the 32 registers accumulate, 4
// hold weights), by 16 of them at a time otherwise. One row takes the whole panel at once in every case, so that memory
// is read in one stream.
#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/isa_kernels.h"

namespace onepass::cpu::ONEPASS_ISA {
namespace {

#if defined(__AVX512F__)
struct Vec {
  static constexpr int kLanes = 16;
  __m512 v;
};
inline Vec vec_load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void vec_store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline Vec vec_set(float x) { return {_mm512_set1_ps(x)}; }
inline Vec vec_zero() { return {_mm512_setzero_ps()}; }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec vec_load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec vec_load_low_bf16(const uint32_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
}
inline Vec vec_load_high_bf16(const uint32_t* p) {
  return {
      _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
constexpr int kTileRows = 6;
constexpr int kTileVecs = 4;
#elif defined(__AVX2__)
struct Vec {
  static constexpr int kLanes = 8;
  __m256 v;
};
inline Vec vec_load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void vec_store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline Vec vec_set(float x) { return {_mm256_set1_ps(x)}; }
inline Vec vec_zero() { return {_mm256_setzero_ps()}; }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec vec_load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Vec vec_load_low_bf16(const uint32_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), 16))};
}
inline Vec vec_load_high_bf16(const uint32_t* p) {
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                                               _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
constexpr int kTileRows = 4;
constexpr int kTileVecs = 2;
#else
// Four lanes by the compiler's own vectors: SSE on x86-64, NEON elsewhere.
typedef float Float4 __attribute__((vector_size(16)));
struct Vec {
  static constexpr int kLanes = 4;
  Float4 v;
};
inline Vec vec_load(const float* p) {
  Vec a;
  __builtin_memcpy(&a.v, p, 16);
  return a;
}
inline void vec_store(float* p, Vec a) { __builtin_memcpy(p, &a.v, 16); }
inline Vec vec_set(float x) { return {Float4{x, x, x, x}}; }
inline Vec vec_zero() { return vec_set(0.0f); }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
inline float half_to_float(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
  if (exponent == 0x1f) return bits_to_float(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}
inline Vec vec_load_f16(const uint16_t* p) {
  return {Float4{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])}};
}
inline Vec vec_load_low_bf16(const uint32_t* p) {
  return {Float4{bits_to_float(p[0] << 16), bits_to_float(p[1] << 16), bits_to_float(p[2] << 16),
                 bits_to_float(p[3] << 16)}};
}
inline Vec vec_load_high_bf16(const uint32_t* p) {
  const uint32_t mask = 0xffff0000u;
  return {Float4{bits_to_float(p[0] & mask), bits_to_float(p[1] & mask), bits_to_float(p[2] & mask),
                 bits_to_float(p[3] & mask)}};
}
constexpr int kTileRows = 4;
constexpr int kTileVecs = 2;
#endif

constexpr int kPanel = 64;

// How each dtype of weights is stored and multiplied. kStepBytes: the 64 outputs' weights of one step; kXPerStep:
// activations (4 bytes each) that one step takes.
struct F32 {
  static constexpr int kStepBytes = kPanel * 4;
  static constexpr int kXPerStep = 1;
  using Weight = Vec;
  using X = Vec;
  static Weight load(const char* step, int column) { return vec_load(reinterpret_cast<const float*>(step) + column); }
  static X broadcast(const char* x) { return vec_set(*reinterpret_cast<const float*>(x)); }
  static Vec multiply_add(Weight w, X x, Vec acc) { return vec_fma(w, x, acc); }
};

struct F16 {
  static constexpr int kStepBytes = kPanel * 2;
  static constexpr int kXPerStep = 1;
  using Weight = Vec;
  using X = Vec;
  static Weight load(const char* step, int column) {
    return vec_load_f16(reinterpret_cast<const uint16_t*>(step) + column);
  }
  static X broadcast(const char* x) { return vec_set(*reinterpret_cast<const float*>(x)); }
  static Vec multiply_add(Weight w, X x, Vec acc) { return vec_fma(w, x, acc); }
};

#if defined(__AVX512BF16__)
struct BF16 {
  static constexpr int kStepBytes = kPanel * 4;
  static constexpr int kXPerStep = 1;
  using Weight = __m512i;
  using X = __m512i;
  static Weight load(const char* step, int column) { return _mm512_loadu_si512(step + column * 4); }
  static X broadcast(const char* x) { return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(x)); }
  static Vec multiply_add(Weight w, X x, Vec acc) {
    return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x))};
  }
};
#else
struct BF16 {
  static constexpr int kStepBytes = kPanel * 4;
  static constexpr int kXPerStep = 2;
  struct Pair {
    Vec low, high;
  };
  using Weight = Pair;
  using X = Pair;
  static Weight load(const char* step, int column) {
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(step) + column;
    return {vec_load_low_bf16(pairs), vec_load_high_bf16(pairs)};
  }
  static X broadcast(const char* x) {
    const float* values = reinterpret_cast<const float*>(x);
    return {vec_set(values[0]), vec_set(values[1])};
  }
  static Vec multiply_add(Weight w, X x, Vec acc) { return vec_fma(w.high, x.high, vec_fma(w.low, x.low, acc)); }
};
#endif

// Bytes asked for ahead of a stream from memory: about 1 us at 25 GB/s, where the hardware's prefetcher stops at each 4
// KiB page.
constexpr int kPrefetchAhead = 4096;

template <typename Format, int kRows, int kVecs, bool kPrefetch>
inline void tile(const LinearPanelArgs& args, int64_t row, int column) {
  const char* step = static_cast<const char*>(args.panel);
  const char* x[kRows];
  Vec acc[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    x[r] = static_cast<const char*>(args.x) + (row + r) * args.x_row_stride * 4;
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = args.first ? vec_zero() : vec_load(args.c + (row + r) * kPanel + column + v * Vec::kLanes);
    }
  }
  for (int64_t s = 0; s < args.steps; ++s) {
    typename Format::Weight w[kVecs];
    for (int v = 0; v < kVecs; ++v) w[v] = Format::load(step, column + v * Vec::kLanes);
    if constexpr (kPrefetch) {
      for (int b = 0; b < Format::kStepBytes; b += 64) __builtin_prefetch(step + kPrefetchAhead + b);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Format::X broadcast = Format::broadcast(x[r] + s * Format::kXPerStep * 4);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) acc[r][v] = Format::multiply_add(w[v], broadcast, acc[r][v]);
    }
    step += Format::kStepBytes;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) vec_store(args.c + (row + r) * kPanel + column + v * Vec::kLanes, acc[r][v]);
  }
}

template <typename Format, int kRows, bool kPrefetch>
inline void rows_of_tile(const LinearPanelArgs& args, int64_t row) {
  // One row has registers for the whole panel where the vectors are 8 or 16 wide.
  constexpr int kVecs = kRows == 1 && Vec::kLanes >= 8 ? kPanel / Vec::kLanes : kTileVecs;
  for (int column = 0; column < kPanel; column += kVecs * Vec::kLanes) {
    tile<Format, kRows, kVecs, kPrefetch>(args, row, column);
  }
}

template <typename Format, bool kPrefetch>
inline void panel_rows(const LinearPanelArgs& args) {
  int64_t row = 0;
  for (; row + kTileRows <= args.rows; row += kTileRows) {
    if (row == 0) {
      rows_of_tile<Format, kTileRows, kPrefetch>(args, row);
    } else {
      rows_of_tile<Format, kTileRows, false>(args, row);
    }
  }
  switch (args.rows - row) {
#if defined(__AVX512F__)
    case 5:
      return rows_of_tile<Format, 5, kPrefetch>(args, row);
    case 4:
      return rows_of_tile<Format, 4, kPrefetch>(args, row);
#endif
    case 3:
      return rows_of_tile<Format, 3, kPrefetch>(args, row);
    case 2:
      return rows_of_tile<Format, 2, kPrefetch>(args, row);
    case 1:
      return rows_of_tile<Format, 1, kPrefetch>(args, row);
    default:
      return;
  }
}

template <typename Format>
void panel(const LinearPanelArgs& args) {
  if (args.prefetch) {
    panel_rows<Format, true>(args);
  } else {
    panel_rows<Format, false>(args);
  }
}

#if defined(__AVX512BF16__)
void to_bf16_pairs(const float* x, int64_t cols, uint32_t* pairs) {
  uint16_t* out = reinterpret_cast<uint16_t*>(pairs);
  int64_t i = 0;
  for (; i + 16 <= cols; i += 16) {
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), reinterpret_cast<const __m256i&>(rounded));
  }
  const __mmask16 tail = static_cast<__mmask16>((1u << (cols - i)) - 1u);
  const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(tail, x + i));
  const __mmask16 padded = static_cast<__mmask16>((1u << ((cols - i + 1) / 2 * 2)) - 1u);
  _mm256_mask_storeu_epi16(out + i, padded, reinterpret_cast<const __m256i&>(rounded));
}
#endif

}  // namespace

extern const LinearKernels kLinearKernels;
const LinearKernels kLinearKernels = {
    .f32 = panel<F32>,
    .f16 = panel<F16>,
    .bf16 = panel<BF16>,
#if defined(__AVX512BF16__)
    .bf16_pairs = true,
    .to_bf16_pairs = to_bf16_pairs,
#else
    .bf16_pairs = false,
    .to_bf16_pairs = nullptr,
#endif
};

}  // namespace onepass::cpu::ONEPASS_ISA
