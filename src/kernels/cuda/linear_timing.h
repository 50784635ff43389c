// The time that ways to compute a dense layer take, as a decoder has them: one layer after the other in a graph, each
// with weights that are not in the L2 cache.
#pragma once

#include <functional>
#include <vector>

#include "kernels/cuda/linear.h"

namespace onepass {

using LinearRun = std::function<Status(const CudaLinearParams&, CUstream_st*)>;

// Seconds of one call of each, with few rows including a pause before it that is the same for all; infinite for those
// that fail. Uses memory of its own, the weights' aside where they are too large for the cache. An error is that of the
// first where all fail, or ResourceExhausted without that memory.
StatusOr<std::vector<double>> time_linear(const CudaLinearParams& params, const GpuInfo& gpu,
                                          const std::vector<LinearRun>& runs);

}  // namespace onepass
