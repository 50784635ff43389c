// Element-wise kernels of one row, in plain loops that the compiler vectorises for the instruction set that the
// including file names by ONEPASS_ISA. Sums run in 16 lanes whatever the vectors' width.
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/cpu/isa_kernels.h"

namespace onepass::cpu::ONEPASS_ISA {
namespace {

inline float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

// exp(x) to 2 ulp: 2^n * p(f), with x log2(e) = n + f, |f| <= 1/2, p the Taylor polynomial of degree 7 in f ln 2 (its
// error there is below 6e-9). Beyond the range of float32 it gives nearly 0 and a large finite number.
inline float exp_approx(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are n
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * from_bits((to_bits(shifted) - 0x4b400000u + 127u) << 23);
}

void rms_norm(const float* x, const float* weight, float eps, int64_t cols, float* out) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= cols; i += 16) {
    for (int l = 0; l < 16; ++l) lanes[l] += x[i + l] * x[i + l];
  }
  for (int l = 0; i + l < cols; ++l) lanes[l] += x[i + l] * x[i + l];
  for (int width = 8; width >= 1; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  const float scale = 1.0f / __builtin_sqrtf(lanes[0] / static_cast<float>(cols) + eps);
  for (int64_t c = 0; c < cols; ++c) out[c] = x[c] * scale * weight[c];
}

void silu_and_mul(const float* __restrict gate, const float* __restrict up, int64_t cols, float* __restrict out) {
  for (int64_t c = 0; c < cols; ++c) out[c] = gate[c] / (1.0f + exp_approx(-gate[c])) * up[c];
}

void rotate(float* x, const float* __restrict cos, const float* __restrict sin, int64_t half) {
  float* __restrict first = x;
  float* __restrict second = x + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = first[i], b = second[i];
    first[i] = a * cos[i] - b * sin[i];
    second[i] = b * cos[i] + a * sin[i];
  }
}

void to_bf16(const float* __restrict x, int64_t count, uint16_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = to_bits(x[i]);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet_nan = (bits >> 16) | 0x40u;
    out[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
  }
}

inline uint16_t half_from_float(float value) {
  const uint32_t bits = to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    return static_cast<uint16_t>(sign | (to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13));
}

void to_f16(const float* __restrict x, int64_t count, uint16_t* __restrict out) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < count; ++i) out[i] = half_from_float(x[i]);
}

}  // namespace

extern const RowKernels kRowKernels;
const RowKernels kRowKernels = {
    .rms_norm = rms_norm, .silu_and_mul = silu_and_mul, .rotate = rotate, .to_bf16 = to_bf16, .to_f16 = to_f16};

}  // namespace onepass::cpu::ONEPASS_ISA
