// y = x W^T for few rows of x, at the memory's speed; and for any number of rows where a row's result must not depend
// on how many there are.
#pragma once

#include "kernels/cuda/linear.h"
#include "kernels/cuda/stream_linear_plan.h"

namespace onepass {

// Queues the work, one kernel with the norm and the activation in it whatever plan.norm_inside says; `normed` and
// `products` are not used. REQUIRES: stream_linear_can_norm() where there is a norm. Reads the weights before earlier
// kernels of the stream have ended: none of those may write them.
Status run_stream_linear(const CudaLinearParams& params, const StreamLinearPlan& plan, const GpuInfo& gpu,
                         CUstream_st* stream);

}  // namespace onepass
