// Dense layers: y = x W^T (+ bias), with W packed once in the order in which the kernels stream it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "tensor/buffer.h"
#include "tensor/device.h"
#include "tensor/dtype.h"

namespace onepass {

// Rows of a weight as safetensors stores it: [rows, cols] row-major, out_features by in_features.
struct MatrixSlice {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
};

// Weights [rows, cols] in panels of 64 rows (outputs): a panel holds, for column 0, 1, ..., the 64 outputs' weights
// side by side (two columns at a time for bf16: the operand of a bf16 dot product). One row of activations reads it as
// one stream, at the speed of memory; many rows read the same panel from the cache. Keeps the dtype it is given (fp32,
// fp16 or bf16).
class PackedMatrix {
 public:
  static constexpr int64_t kPanelRows = 64;

  PackedMatrix() = default;

  // The slices stacked by rows (q, k and v, say, become one matrix). All have one dtype.
  static StatusOr<PackedMatrix> pack(std::span<const MatrixSlice> slices, int64_t cols, const Stream& stream);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  DType dtype() const { return dtype_; }
  int64_t size_bytes() const { return static_cast<int64_t>(data_.size()); }
  const void* data() const { return data_.data(); }

  // Columns as stored: rounded up to even for bf16, with zeros.
  int64_t padded_cols() const { return dtype_ == DType::kBF16 ? (cols_ + 1) / 2 * 2 : cols_; }

  // Row `row` as float32 [cols]: a tied embedding is looked up in the matrix of the output layer.
  void unpack_row(int64_t row, float* out) const;

 private:
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  DType dtype_ = DType::kF32;
  Buffer data_;
};

// Scratch memory of run_linear: activations in the weights' dtype. Grows; the caller keeps it from call to call.
struct LinearWorkspace {
  std::vector<uint32_t> packed_x;
};

struct LinearParams {
  const float* x = nullptr;  // [num_rows, weight->cols()]
  int64_t x_row_stride = 0;
  int64_t num_rows = 0;
  const PackedMatrix* weight = nullptr;
  const float* bias = nullptr;  // [weight->rows()] or null
  float* y = nullptr;           // [num_rows, weight->rows()]
  int64_t y_row_stride = 0;
  bool accumulate = false;  // y += instead of y =: the residual
};

// Each output is summed in the order of the columns in float32, whatever the number of rows, threads or the row's
// place: the result for a token does not depend on the batch or chunk that it is in, bit for bit. With bf16 weights on
// a processor with bf16 dot products the activations are rounded to bf16 first (relative error 2^-9 each), as bf16
// models expect; otherwise the arithmetic is float32.
void run_linear(const LinearParams& params, LinearWorkspace& workspace, const Stream& stream);

}  // namespace onepass
