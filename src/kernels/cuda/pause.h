// A kernel that only takes time: what stands between a decoder's dense layers when those are timed.
#pragma once

#include <cstdint>

#include "base/status.h"

struct CUstream_st;

namespace onepass {

// Queues one thread block that ends `cycles` of its multiprocessor's clock after the work before it. The next kernel
// may begin early, as behind any other of the decoder's.
Status run_pause_cuda(int64_t cycles, CUstream_st* stream);

}  // namespace onepass
