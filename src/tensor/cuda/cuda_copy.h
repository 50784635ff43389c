// Queued copies between host and GPU, or within a GPU.
#pragma once

#include <cstddef>

#include "base/status.h"

struct CUstream_st;

namespace onepass {

// The direction follows from the addresses. Host memory is page-locked (PinnedBuffer): from and to any other the copy
// would wait for the host. Neither side may change or go before the stream's work is done.
Status copy_async(void* to, const void* from, size_t bytes, CUstream_st* stream);

// `rows` rows of `bytes` bytes each, between memories with these pitches in bytes.
Status copy_rows_async(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t bytes, size_t rows,
                       CUstream_st* stream);

// Waits until all work of the stream is done; its errors show here.
Status synchronize(CUstream_st* stream);

// Memory of the current GPU, in bytes. What other processes hold is not free.
struct CudaMemory {
  size_t free = 0;
  size_t total = 0;
};
StatusOr<CudaMemory> cuda_memory();

// Makes the GPU current in the calling thread.
Status set_current_gpu(int index);

}  // namespace onepass
