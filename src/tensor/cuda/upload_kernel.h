// A small copy to a GPU that costs no change between its engines.
#pragma once

#include <cstddef>

#include "base/status.h"
#include "tensor/cuda/cuda_stream.h"

namespace onepass {

// Queues a kernel that reads `from` (page-locked, PinnedBuffer) over the bus and writes `to`. Between two kernels it
// costs 4 us where the copy engine, which has to wait for the one and be waited for by the other, costs 9; for some
// hundred kilobytes at most. REQUIRES: both 16-byte aligned, and `bytes` a multiple of 16.
Status upload_by_kernel(void* to, const void* from, size_t bytes, CUstream_st* stream);

// What that kernel does in the next launches of a graph that was captured with it as the first. REQUIRES: as above,
// and bytes > 0.
Status set_first_upload(const CudaGraph& graph, void* to, const void* from, size_t bytes);

}  // namespace onepass
