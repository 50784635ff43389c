// A kernel that only reads: what was in the L2 cache has left it then, and nothing waits to be written back.
#pragma once

#include <cstddef>

#include "base/status.h"

struct CUstream_st;

namespace onepass {

// Queues a read of `bytes` bytes of zeros in device memory, 16-byte aligned and a multiple of 16.
Status run_read_memory_cuda(const void* data, size_t bytes, CUstream_st* stream);

}  // namespace onepass
