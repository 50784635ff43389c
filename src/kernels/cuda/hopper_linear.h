// y = x W^T for 9 to 128 rows of x on Hopper, at the memory's speed: with warpgroup products, where run_stream_linear's
// threads would have to read x from shared memory too often.
#pragma once

#include "kernels/cuda/hopper_linear_plan.h"
#include "kernels/cuda/linear.h"

namespace onepass {

// Queues the work, one kernel with the activation in it; a norm is not for it (params.norm is null), and `products` is
// not used. Reads the weights before earlier kernels of the stream have ended: none of those may write them. Sums are
// in float32, in the same order whatever num_rows and plan are.
Status run_hopper_linear(const CudaLinearParams& params, const HopperLinearPlan& plan, const GpuInfo& gpu,
                         CUstream_st* stream);

}  // namespace onepass
