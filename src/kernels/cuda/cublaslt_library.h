// cuBLASLt's functions, found when they are first asked for: the program starts, and runs on its CPU kernels, on
// machines that have no file of NVIDIA's.
#pragma once

#include <cublasLt.h>

#include "base/status.h"

namespace onepass {

// Those that linear algebra on a GPU needs, by the names of cublasLt.h.
struct CublasLtLibrary {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetVersion) version = nullptr;
  decltype(&cublasLtGetStatusString) status_string = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulDescInit_internal) init_desc = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_desc = nullptr;
  decltype(&cublasLtMatrixLayoutInit_internal) init_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceInit_internal) init_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
};

// Looks in the program's own folder, in ../lib beside it, where the loader looks, and in /usr/local/cuda/lib64. Opened
// once and for good; an error says what was looked for where. Any thread may call.
StatusOr<const CublasLtLibrary*> open_cublaslt();

}  // namespace onepass
