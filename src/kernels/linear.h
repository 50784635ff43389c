// Dense layers: y = x W^T (+ bias), with W where it lies in the mapped file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "tensor/device.h"
#include "tensor/dtype.h"

namespace onepass {

// Rows of a weight as safetensors stores it: [rows, cols] row-major, out_features by in_features. Any alignment.
struct MatrixSlice {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
};

// Weights [rows, cols]: slices of one dtype (fp32, fp16 or bf16) stacked by rows, so that q, k and v, say, are one
// product. A view: the kernels read the mapped file itself. Packing the weights into another order first would make the
// products of long prompts about 5% faster, but costs a copy of the model in memory and a second of start-up for each
// gigabyte.
class WeightMatrix {
 public:
  WeightMatrix() = default;
  // REQUIRES: the slices' memory outlives the matrix.
  WeightMatrix(std::vector<MatrixSlice> slices, int64_t cols);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  DType dtype() const { return slices_.at(0).dtype; }
  int64_t size_bytes() const { return rows_ * cols_ * static_cast<int64_t>(size_of(dtype())); }
  const std::vector<MatrixSlice>& slices() const { return slices_; }

  // Row `row` as float32 [cols]: the look-up of an embedding, which may be tied to the output layer.
  void read_row(int64_t row, float* out) const;

 private:
  std::vector<MatrixSlice> slices_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
};

// Scratch memory of run_linear: activations in the weights' dtype. Grows; the caller keeps it from call to call.
struct LinearWorkspace {
  std::vector<std::byte> packed_x;
};

struct LinearParams {
  const float* x = nullptr;  // [num_rows, weight->cols()]
  int64_t x_row_stride = 0;
  int64_t num_rows = 0;
  const WeightMatrix* weight = nullptr;
  const float* bias = nullptr;  // [weight->rows()] or null
  float* y = nullptr;           // [num_rows, weight->rows()]
  int64_t y_row_stride = 0;
  bool accumulate = false;  // y += instead of y =: the residual
};

// Each output is summed in float32 in an order that depends on cols() and the instruction set alone: the result for a
// token does not depend on the batch or chunk that it is in, nor on the number of threads, bit for bit. With bf16
// weights on a processor with bf16 dot products the activations are rounded to bf16 first (relative error 2^-9 each),
// as bf16 models expect; otherwise the arithmetic is float32.
void run_linear(const LinearParams& params, LinearWorkspace& workspace, const Stream& stream);

}  // namespace onepass
