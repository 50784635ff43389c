#include "kernels/cuda/cublaslt_linear.h"

#include <cstddef>
#include <string>

namespace onepass {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // NVIDIA's advice for Hopper

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::kF32 ? CUDA_R_32F : dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

// The library counts in columns: W, row-major, is its [cols, rows] and taken transposed; x is its [cols, num_rows]; y
// its [rows, num_rows].
struct Problem {
  cublasLtMatmulDescOpaque_t desc;
  cublasLtMatrixLayoutOpaque_t w, x, y;
};

Status status_of(const CublasLtLibrary& lt, cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return ok_status();
  const std::string message = str_cat("linear: ", what, ": ", lt.status_string(status));
  // What an algorithm does not do, it says in one of these ways.
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE ||
      status == CUBLAS_STATUS_ARCH_MISMATCH) {
    return absl::UnimplementedError(message);
  }
  return absl::InternalError(message);
}

StatusOr<Problem> describe(const CublasLtLibrary& lt, const CudaLinearParams& p, const void* bias) {
  Problem problem;
  const auto layout = [&](cublasLtMatrixLayoutOpaque_t& to, DType dtype, int64_t rows, int64_t cols, int64_t stride) {
    return status_of(lt,
                     lt.init_layout(&to, sizeof(to), type_of(dtype), static_cast<uint64_t>(rows),
                                    static_cast<uint64_t>(cols), stride),
                     "cublasLtMatrixLayoutInit");
  };
  ONEPASS_RETURN_IF_ERROR(layout(problem.w, p.dtype, p.cols, p.rows, p.cols));
  // One row has no stride; the library wants one all the same.
  ONEPASS_RETURN_IF_ERROR(layout(problem.x, p.dtype, p.cols, p.num_rows, p.x_row_stride));
  ONEPASS_RETURN_IF_ERROR(layout(problem.y, p.y_dtype, p.rows, p.num_rows, p.y_row_stride));
  ONEPASS_RETURN_IF_ERROR(status_of(
      lt, lt.init_desc(&problem.desc, sizeof(problem.desc), CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescInit"));
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    return status_of(lt,
                     lt.set_desc(&problem.desc, attribute, reinterpret_cast<const std::byte*>(&value), sizeof(value)),
                     "cublasLtMatmulDescSetAttribute");
  };
  ONEPASS_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
  if (bias != nullptr) {
    ONEPASS_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS));
    ONEPASS_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(type_of(p.y_dtype))));
    ONEPASS_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias));
  }
  return problem;
}

}  // namespace

StatusOr<std::unique_ptr<CublasLtLinear>> CublasLtLinear::create() {
  ONEPASS_ASSIGN_OR_RETURN(const CublasLtLibrary* library, open_cublaslt());
  std::unique_ptr<CublasLtLinear> linear(new CublasLtLinear(*library));
  ONEPASS_RETURN_IF_ERROR(status_of(*library, library->create(&linear->handle_), "cublasLtCreate"));
  ONEPASS_ASSIGN_OR_RETURN(linear->workspace_, CudaBuffer::allocate(kWorkspaceBytes));
  return linear;
}

CublasLtLinear::~CublasLtLinear() {
  if (handle_ != nullptr) library_.destroy(handle_);
}

StatusOr<std::vector<cublasLtMatmulAlgo_t>> CublasLtLinear::algorithms(const CudaLinearParams& params,
                                                                       int count) const {
  // Any address that is not null and well aligned says that there is a bias.
  const void* bias = params.bias != nullptr ? workspace_.data() : nullptr;
  ONEPASS_ASSIGN_OR_RETURN(Problem problem, describe(library_, params, bias));
  cublasLtMatmulPreferenceOpaque_t preference;
  ONEPASS_RETURN_IF_ERROR(
      status_of(library_, library_.init_preference(&preference, sizeof(preference)), "cublasLtMatmulPreferenceInit"));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    return status_of(library_, library_.set_preference(&preference, attribute, &value, sizeof(value)),
                     "cublasLtMatmulPreferenceSetAttribute");
  };
  ONEPASS_RETURN_IF_ERROR(prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes));
  // Where columns are split, the parts are added in float32, not in y's dtype.
  ONEPASS_RETURN_IF_ERROR(
      prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE}));
  std::vector<cublasLtMatmulHeuristicResult_t> results(count);
  int found = 0;
  ONEPASS_RETURN_IF_ERROR(status_of(library_,
                                    library_.heuristic(handle_, &problem.desc, &problem.w, &problem.x, &problem.y,
                                                       &problem.y, &preference, count, results.data(), &found),
                                    "cublasLtMatmulAlgoGetHeuristic"));
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < found; ++i) {
    if (results[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(results[i].algo);
  }
  return algorithms;
}

Status CublasLtLinear::run(const CudaLinearParams& p, const void* bias, const cublasLtMatmulAlgo_t& algorithm,
                           CUstream_st* stream) const {
  ONEPASS_ASSIGN_OR_RETURN(Problem problem, describe(library_, p, bias));
  const float one = 1.0f, kept = p.accumulate ? 1.0f : 0.0f;
  return status_of(library_,
                   library_.matmul(handle_, &problem.desc, &one, p.weight, &problem.w, p.x, &problem.x, &kept, p.y,
                                   &problem.y, p.y, &problem.y, &algorithm, workspace_.data(), kWorkspaceBytes, stream),
                   "cublasLtMatmul");
}

}  // namespace onepass
