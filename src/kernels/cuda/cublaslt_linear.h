// Dense layers by cuBLASLt: a handle, its workspace, and what a plan of one of its algorithms is.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/linear.h"
#include "tensor/cuda/cuda_buffer.h"

namespace onepass {

class CublasLtLinear {
 public:
  static StatusOr<std::unique_ptr<CublasLtLinear>> create();
  ~CublasLtLinear();
  CublasLtLinear(const CublasLtLinear&) = delete;
  CublasLtLinear& operator=(const CublasLtLinear&) = delete;

  size_t version() const { return library_.version(); }

  // What the library's heuristic proposes for the shape, best guess first, `count` at most. Addresses do not matter.
  StatusOr<std::vector<cublasLtMatmulAlgo_t>> algorithms(const CudaLinearParams& params, int count) const;

  // bias: of y's dtype, or null; params.bias is not read. Unimplemented where the algorithm does not do this shape.
  Status run(const CudaLinearParams& params, const void* bias, const cublasLtMatmulAlgo_t& algorithm,
             CUstream_st* stream) const;

 private:
  explicit CublasLtLinear(const CublasLtLibrary& library) : library_(library) {}

  const CublasLtLibrary& library_;
  cublasLtHandle_t handle_ = nullptr;
  CudaBuffer workspace_;
};

}  // namespace onepass
