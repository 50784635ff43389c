// Dense layers on a GPU: y = x W^T (+ bias), by cuBLASLt, and for few rows by kernels of our own that read the weights
// at the memory's speed; with the norm before (which that for the fewest rows takes in) and the gated activation behind
// it (which both take in).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "tensor/cuda_info.h"
#include "tensor/dtype.h"

struct CUstream_st;

namespace onepass {

// All pointers are device memory, 16-byte aligned; strides in elements, multiples of 16 bytes; so is a row
// of the weights (cols is a multiple of 8).
struct CudaLinearParams {
  DType dtype = DType::kBF16;  // of x and weight: float16 or bfloat16
  const void* x = nullptr;     // [num_rows, cols]
  int64_t x_row_stride = 0;
  int64_t num_rows = 0;
  const void* weight = nullptr;  // [rows, cols], row-major, rows side by side
  int64_t rows = 0;
  int64_t cols = 0;
  const float* bias = nullptr;   // [rows] or null; may be rounded to y_dtype before it is added
  void* y = nullptr;             // [num_rows, rows]
  DType y_dtype = DType::kBF16;  // float32, or that of x
  int64_t y_row_stride = 0;
  bool accumulate = false;  // y += instead of y =: the residual; what is added may be rounded to y_dtype first

  // Before the product: x is float32, and what is multiplied is x / sqrt(mean(x^2) + norm_eps) * norm, rounded to
  // dtype: what run_rms_norm_cuda leaves, bit for bit. Null: x is multiplied as it is.
  const float* norm = nullptr;  // [cols]
  float norm_eps = 0.0f;
  void* normed = nullptr;  // [num_rows, cols] of dtype, with norm: room for kernels that are apart

  // After the product: its first rows / 2 columns are the gate, the others what it lets through. y, of dtype, is
  // [num_rows, rows / 2]: silu(gate) * other of what is rounded to dtype, as run_silu_and_mul_cuda has it.
  bool gated = false;
  void* products = nullptr;  // [num_rows, rows] of dtype, when gated: room for kernels that are apart

  int64_t y_cols() const { return gated ? rows / 2 : rows; }
};

// The library, its handle, its workspace and the plan of each shape that was asked for. Sums are kept in float32. Used
// by one thread and one stream at a time; run() may be captured once its shape has been prepared. Weights are read
// before earlier work of the stream has ended: what writes them has ended before run().
class CudaLinear {
 public:
  struct Options {
    // Where plans are kept from one start to the next; empty: nowhere. A file that cannot be read or belongs to another
    // GPU, driver or library is written anew.
    std::string plan_file;
    // A row's result does not depend on num_rows, bit for bit: one kernel of our own for all numbers of rows, slower.
    bool batch_invariant = false;
  };
  // Opens cuBLASLt (libcublasLt.so.13: beside the program, where the loader looks, or under /usr/local/cuda); an error
  // says what was looked for where.
  static StatusOr<std::unique_ptr<CudaLinear>> create(const GpuInfo& gpu, const Options& options);
  ~CudaLinear();
  CudaLinear(const CudaLinear&) = delete;
  CudaLinear& operator=(const CudaLinear&) = delete;

  // Chooses how this shape (dtypes, sizes, strides, bias, accumulate) is computed: what run() would do at its first
  // call, without running it.
  Status prepare(const CudaLinearParams& params);
  // The same for every number of rows up to params.num_rows, faster than one after the other.
  Status prepare_up_to(const CudaLinearParams& params);
  // Queues the work. The error names the field that is wrong, or is a CUDA error.
  Status run(const CudaLinearParams& params, CUstream_st* stream);
  // The plan of a prepared shape in a word, for people: "cublaslt", "stream-...", "hopper-..." (of our own) or "none".
  std::string describe(const CudaLinearParams& params) const;

 private:
  class Impl;
  explicit CudaLinear(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace onepass
