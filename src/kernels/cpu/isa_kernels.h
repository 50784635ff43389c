// The tables of kernels that are compiled once for each instruction set.
#pragma once

#include <cstdint>

namespace onepass::cpu {

// A part of a matrix product y = x W^T: sums[row * sums_stride + output] (+)= x[row] . w[output]. `w` are rows of a
// weight as stored (fp32, fp16 or bf16), `x` rows of activations: bf16 where bf16_rounds_x says so, float32 otherwise.
// A dot product runs in the lanes of one vector, is added up over the lanes at the end of each block of columns, and
// blocks are added one after the other: the same order of additions whatever the shape.
struct LinearTileArgs {
  const void* x = nullptr;
  int64_t x_row_stride = 0;  // in elements of x
  int64_t rows = 0;
  const void* w = nullptr;
  int64_t w_row_stride = 0;  // in elements of w
  int64_t outputs = 0;
  int64_t cols = 0;
  int64_t block_cols = 0;  // of `stream`, which takes whole rows; `tile` takes one block
  float* sums = nullptr;
  int64_t sums_stride = 0;
  bool first = false;  // sums = instead of sums +=
  // `tile` asks for these weights while it works: what it is given next. Rows of next_row_bytes, next_row_stride apart.
  const void* next_w = nullptr;
  int64_t next_rows = 0;
  int64_t next_row_bytes = 0;
  int64_t next_row_stride = 0;  // in bytes
};

// For weights of one dtype.
struct LinearKernel {
  // Any number of rows, one block of columns: weights are used many times while they are in a cache.
  void (*tile)(const LinearTileArgs&);
  // At most max_rows rows, all columns: weights are used once, in the order of memory.
  void (*stream)(const LinearTileArgs&);
};

struct LinearKernels {
  LinearKernel f32, f16, bf16;
  bool bf16_rounds_x;  // bf16 dot products: the bf16 kernel takes activations rounded to bf16
  int max_rows;        // of `stream`
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

// Loops that reach a ceiling of the machine (kernels/cpu/peaks.h).
struct PeakKernels {
  double (*fp32_fma)(int64_t iterations);  // returns the operations done
  double (*bf16_dot)(int64_t iterations);  // null: no such instruction
  uint64_t (*read)(const void* data, int64_t bytes);
};

namespace portable {
extern const LinearKernels kLinearKernels;
extern const RowKernels kRowKernels;
extern const PeakKernels kPeakKernels;
}  // namespace portable
namespace avx2 {
extern const LinearKernels kLinearKernels;
extern const RowKernels kRowKernels;
extern const PeakKernels kPeakKernels;
}  // namespace avx2
namespace avx512 {
extern const LinearKernels kLinearKernels;
extern const RowKernels kRowKernels;
extern const PeakKernels kPeakKernels;
}  // namespace avx512
namespace avx512bf16 {
extern const LinearKernels kLinearKernels;
extern const RowKernels kRowKernels;
extern const PeakKernels kPeakKernels;
}  // namespace avx512bf16

}  // namespace onepass::cpu
