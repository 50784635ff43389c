// Loops that reach a ceiling, for the instruction set that the including file names by ONEPASS_ISA.
#include "base/simd.inl"
#include "kernels/cpu/isa_kernels.h"

namespace onepass::cpu::ONEPASS_ISA {
namespace {

using namespace onepass::ONEPASS_ISA;  // NOLINT: the vectors of this instruction set

constexpr int kChains = 12;  // independent sums: latency times throughput of every processor that this runs on

double fp32_fma(int64_t iterations) {
  Vec sums[kChains];
#pragma GCC unroll 16
  for (int c = 0; c < kChains; ++c) sums[c] = vec_set(static_cast<float>(c));
  Vec a = vec_set(0.999f), b = vec_set(0.001f);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) sums[c] = vec_fma(sums[c], a, b);
    asm volatile("" : "+x"(a.v), "+x"(b.v));  // the loop is not to be worked out by the compiler
  }
  float total = 0.0f;
  for (int c = 0; c < kChains; ++c) total += vec_reduce_add(sums[c]);
  asm volatile("" : : "x"(total));
  return 2.0 * Vec::kLanes * kChains * static_cast<double>(iterations);
}

#if defined(__AVX512BF16__)
double bf16_dot(int64_t iterations) {
  __m512 sums[kChains];
#pragma GCC unroll 16
  for (int c = 0; c < kChains; ++c) sums[c] = _mm512_set1_ps(static_cast<float>(c));
  __m512i a = _mm512_set1_epi32(0x3f803f80), b = _mm512_set1_epi32(0x3f003f00);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      sums[c] = _mm512_dpbf16_ps(sums[c], reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }
    asm volatile("" : "+v"(a), "+v"(b));
  }
  float total = 0.0f;
  for (int c = 0; c < kChains; ++c) total += _mm512_reduce_add_ps(sums[c]);
  asm volatile("" : : "x"(total));
  return 64.0 * kChains * static_cast<double>(iterations);
}
#endif

uint64_t read(const void* data, int64_t bytes) {
  const char* p = static_cast<const char*>(data);
  constexpr int kStep = 4 * 64;
  Vec sums[4] = {vec_zero(), vec_zero(), vec_zero(), vec_zero()};
  for (int64_t at = 0; at + kStep <= bytes; at += kStep) {
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) {
      __builtin_prefetch(p + at + 4096 + line * 64);
#pragma GCC unroll 4
      for (int lane = 0; lane < 16; lane += Vec::kLanes) {
        sums[line] = vec_max(sums[line], vec_load(reinterpret_cast<const float*>(p + at + line * 64) + lane));
      }
    }
  }
  return static_cast<uint64_t>(vec_reduce_max(vec_max(vec_max(sums[0], sums[1]), vec_max(sums[2], sums[3]))));
}

}  // namespace

extern const PeakKernels kPeakKernels;
const PeakKernels kPeakKernels = {
    .fp32_fma = fp32_fma,
#if defined(__AVX512BF16__)
    .bf16_dot = bf16_dot,
#else
    .bf16_dot = nullptr,
#endif
    .read = read,
};

}  // namespace onepass::cpu::ONEPASS_ISA
