// The tables of kernels that are compiled once for each instruction set.
#pragma once

#include <cstdint>

namespace onepass::cpu {

// c[row][0..63] (+)= the products of `rows` rows of activations with one panel of 64 outputs (PackedMatrix), over
// `steps` steps: a step is one column (fp32, fp16) or two (bf16).
struct LinearPanelArgs {
  const void* x = nullptr;   // first column's activations: float32, or pairs of bf16 where bf16_pairs says so
  int64_t x_row_stride = 0;  // in units of 4 bytes
  int64_t rows = 0;
  const void* panel = nullptr;
  int64_t steps = 0;
  float* c = nullptr;     // [rows, 64]
  bool first = false;     // begin at zero instead of at c
  bool prefetch = false;  // the panel comes from memory: ask for it ahead
};

struct LinearKernels {
  void (*f32)(const LinearPanelArgs&);
  void (*f16)(const LinearPanelArgs&);
  void (*bf16)(const LinearPanelArgs&);
  bool bf16_pairs;  // the bf16 kernel takes activations rounded to bf16, two in a uint32
  // x [cols] to (cols + 1) / 2 such pairs, the last one filled up with zero; null when bf16_pairs is false.
  void (*to_bf16_pairs)(const float* x, int64_t cols, uint32_t* pairs);
};

// Element-wise work on one row.
struct RowKernels {
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t cols, float* out);
  void (*silu_and_mul)(const float* gate, const float* up, int64_t cols, float* out);
  // Rotates x[i] with x[i + half] by (cos[i], sin[i]).
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);
  void (*to_bf16)(const float* x, int64_t count, uint16_t* out);
  void (*to_f16)(const float* x, int64_t count, uint16_t* out);
};

namespace portable {
extern const LinearKernels kLinearKernels;
extern const RowKernels kRowKernels;
}  // namespace portable
namespace avx2 {
extern const LinearKernels kLinearKernels;
extern const RowKernels kRowKernels;
}  // namespace avx2
namespace avx512 {
extern const LinearKernels kLinearKernels;
extern const RowKernels kRowKernels;
}  // namespace avx512
namespace avx512bf16 {
extern const LinearKernels kLinearKernels;
extern const RowKernels kRowKernels;
}  // namespace avx512bf16

}  // namespace onepass::cpu
