#include "tensor/cuda/staged_upload.h"

#include <algorithm>

#include "tensor/cuda/cuda_copy.h"

namespace onepass {
namespace {

constexpr size_t kStagingBytes = size_t{32} << 20;

}  // namespace

StatusOr<StagedUpload> StagedUpload::create() {
  ONEPASS_ASSIGN_OR_RETURN(CudaStream stream, CudaStream::create());
  std::array<Half, 2> halves;
  for (Half& half : halves) {
    ONEPASS_ASSIGN_OR_RETURN(half.memory, PinnedBuffer::allocate(kStagingBytes));
    ONEPASS_ASSIGN_OR_RETURN(half.copied, CudaEvent::create());
  }
  return StagedUpload(std::move(stream), std::move(halves));
}

Status StagedUpload::copy(void* to, size_t bytes,
                          absl::FunctionRef<void(std::byte* staging, size_t offset, size_t bytes)> produce) {
  for (size_t offset = 0; offset < bytes; offset += kStagingBytes) {
    const size_t count = std::min(kStagingBytes, bytes - offset);
    Half& half = halves_[next_];
    next_ = 1 - next_;
    if (half.in_use) ONEPASS_RETURN_IF_ERROR(half.copied.synchronize());
    produce(half.memory.data(), offset, count);
    ONEPASS_RETURN_IF_ERROR(copy_async(static_cast<std::byte*>(to) + offset, half.memory.data(), count, stream_.get()));
    ONEPASS_RETURN_IF_ERROR(half.copied.record(stream_));
    half.in_use = true;
  }
  return ok_status();
}

Status StagedUpload::finish() { return stream_.synchronize(); }

}  // namespace onepass
