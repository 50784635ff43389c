// Errors of the CUDA runtime as statuses.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "base/status.h"

namespace onepass {

// "what: the runtime's words (cudaErrorName)". Clears the runtime's last error, so that later calls do not find it.
inline Status cuda_status(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return ok_status();
  cudaGetLastError();
  return absl::InternalError(str_cat(what, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"));
}

// After a kernel launch.
inline Status launch_status(std::string_view what) { return cuda_status(cudaGetLastError(), what); }

}  // namespace onepass
