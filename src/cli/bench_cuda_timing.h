// How benchmarks on a GPU take the time, and what they measure it by.
#pragma once

#include "absl/functional/function_ref.h"
#include "base/status.h"
#include "tensor/cuda/cuda_stream.h"

namespace onepass {

// The time of what `queue` puts on the stream: the median of those rounds that fit in `budget` seconds (three at least)
// after as much warm-up as an idle GPU needs to reach its clock.
StatusOr<double> seconds_on(const CudaStream& stream, double budget, absl::FunctionRef<Status()> queue);

// Bytes read and written by a plain copy, a second. Not in a graph: there the runtime takes a copy engine, which is
// slower (2.4 TB/s on an H100) than its kernel (3.0).
StatusOr<double> measure_copy_bandwidth(const CudaStream& stream);

}  // namespace onepass
