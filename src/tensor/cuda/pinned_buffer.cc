#include "tensor/cuda/pinned_buffer.h"

#include <algorithm>

#include "tensor/cuda/cuda_status.h"

namespace onepass {

StatusOr<PinnedBuffer> PinnedBuffer::allocate(size_t size) {
  PinnedBuffer buffer;
  const Status status = cuda_status(cudaMallocHost(&buffer.data_, std::max<size_t>(size, 1)), "cudaMallocHost");
  if (!status.ok()) return annotate(status, size, " bytes of page-locked memory");
  buffer.size_ = size;
  return buffer;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

}  // namespace onepass
