// Vectors of float32 for the code that is compiled once for each instruction set: the including file names its own by
// ONEPASS_ISA and is compiled with its flags (onepass_isa_sources in cmake/). Everything is in an unnamed namespace, so
// that no function compiled for one instruction set can take another's place when the program is linked.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace onepass::ONEPASS_ISA {
namespace {

#if defined(__AVX512F__)

struct Vec {
  static constexpr int kLanes = 16;
  __m512 v;
};
inline Vec vec_zero() { return {_mm512_setzero_ps()}; }
inline Vec vec_set(float x) { return {_mm512_set1_ps(x)}; }
inline Vec vec_load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void vec_store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline Vec vec_add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec vec_sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec vec_mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec vec_div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec vec_max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec vec_load_f16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }
inline Vec vec_load_bf16(const void* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline float vec_reduce_max(Vec a) { return _mm512_reduce_max_ps(a.v); }
inline float vec_reduce_add(Vec a) { return _mm512_reduce_add_ps(a.v); }
// The whole number nearest to each lane, and 2 to the power of whole numbers (0 below the range of float32).
inline Vec vec_round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec vec_scale_by_power_of_two(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// Lanes first..last of `a`; `other` in the rest.
inline Vec vec_select_lanes(Vec a, int first, int last, Vec other) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 mask =
      _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(first)) & _mm512_cmple_epi32_mask(lane, _mm512_set1_epi32(last));
  return {_mm512_mask_blend_ps(mask, other.v, a.v)};
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

struct Vec {
  static constexpr int kLanes = 8;
  __m256 v;
};
inline Vec vec_zero() { return {_mm256_setzero_ps()}; }
inline Vec vec_set(float x) { return {_mm256_set1_ps(x)}; }
inline Vec vec_load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void vec_store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline Vec vec_add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec vec_sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec vec_mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec vec_div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec vec_max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec vec_load_f16(const void* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)))}; }
inline Vec vec_load_bf16(const void* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
inline float vec_reduce_max(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline float vec_reduce_add(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline Vec vec_round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec vec_scale_by_power_of_two(Vec a, Vec n) {
  // Below 2^-126 the factor's exponent is 0, which is 0; above 2^127 does not occur (arguments are at most 0 or small).
  const __m256i exponent =
      _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_max_ps(n.v, _mm256_set1_ps(-127.0f))), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
}
inline Vec vec_select_lanes(Vec a, int first, int last, Vec other) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i outside = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                          _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(last)));
  return {_mm256_blendv_ps(a.v, other.v, _mm256_castsi256_ps(outside))};
}
inline __m128 vec_sums(Vec a, Vec b, Vec c, Vec d) {
  const __m256 abcd = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
  return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

#else

struct Vec {
  static constexpr int kLanes = 4;
  __m128 v;
};
inline Vec vec_zero() { return {_mm_setzero_ps()}; }
inline Vec vec_set(float x) { return {_mm_set1_ps(x)}; }
inline Vec vec_load(const float* p) { return {_mm_loadu_ps(p)}; }
inline void vec_store(float* p, Vec a) { _mm_storeu_ps(p, a.v); }
inline Vec vec_add(Vec a, Vec b) { return {_mm_add_ps(a.v, b.v)}; }
inline Vec vec_sub(Vec a, Vec b) { return {_mm_sub_ps(a.v, b.v)}; }
inline Vec vec_mul(Vec a, Vec b) { return {_mm_mul_ps(a.v, b.v)}; }
inline Vec vec_div(Vec a, Vec b) { return {_mm_div_ps(a.v, b.v)}; }
inline Vec vec_max(Vec a, Vec b) { return {_mm_max_ps(a.v, b.v)}; }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm_add_ps(_mm_mul_ps(a.v, b.v), c.v)}; }
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
inline float vec_reduce_max(Vec a) {
  const __m128 x = _mm_max_ps(a.v, _mm_movehl_ps(a.v, a.v));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline float vec_reduce_add(Vec a) {
  const __m128 x = _mm_add_ps(a.v, _mm_movehl_ps(a.v, a.v));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline Vec vec_round(Vec a) { return {_mm_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec vec_scale_by_power_of_two(Vec a, Vec n) {
  const __m128i exponent = _mm_add_epi32(_mm_cvtps_epi32(_mm_max_ps(n.v, _mm_set1_ps(-127.0f))), _mm_set1_epi32(127));
  return {_mm_mul_ps(a.v, _mm_castsi128_ps(_mm_slli_epi32(exponent, 23)))};
}
inline Vec vec_select_lanes(Vec a, int first, int last, Vec other) {
  const __m128i lane = _mm_setr_epi32(0, 1, 2, 3);
  const __m128i outside =
      _mm_or_si128(_mm_cmpgt_epi32(_mm_set1_epi32(first), lane), _mm_cmpgt_epi32(lane, _mm_set1_epi32(last)));
  return {_mm_blendv_ps(a.v, other.v, _mm_castsi128_ps(outside))};
}
inline __m128 vec_sums(Vec a, Vec b, Vec c, Vec d) {
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a.v, b.v), _mm_unpackhi_ps(a.v, b.v));
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c.v, d.v), _mm_unpackhi_ps(c.v, d.v));
  return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}

#endif

// 2^x for x <= about 100: x = n + f with |f| <= 1/2, and 2^f by its Taylor polynomial of degree 6 in f ln 2 (relative
// error 1.2e-7). 0 for -inf and whatever is below the range.
inline Vec vec_exp2(Vec x) {
  const Vec clamped = vec_max(x, vec_set(-200.0f));  // of -inf, n and f would be NaN
  const Vec n = vec_round(clamped);
  const Vec f = vec_sub(clamped, n);
  Vec p = vec_set(1.54035304e-4f);
  p = vec_fma(p, f, vec_set(1.33335581e-3f));
  p = vec_fma(p, f, vec_set(9.61812911e-3f));
  p = vec_fma(p, f, vec_set(5.55041087e-2f));
  p = vec_fma(p, f, vec_set(2.40226507e-1f));
  p = vec_fma(p, f, vec_set(6.93147181e-1f));
  p = vec_fma(p, f, vec_set(1.0f));
  return vec_scale_by_power_of_two(p, n);
}

}  // namespace
}  // namespace onepass::ONEPASS_ISA
