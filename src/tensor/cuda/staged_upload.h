// Large copies from the host's ordinary memory (mapped files) to a GPU, at the bus's speed.
#pragma once

#include <array>
#include <cstddef>

#include "absl/functional/function_ref.h"
#include "base/status.h"
#include "tensor/cuda/cuda_stream.h"
#include "tensor/cuda/pinned_buffer.h"

namespace onepass {

// Two page-locked buffers in turn: one is filled by the host while the other is copied. On a stream of its own: other
// streams read what was copied after finish(). Used by one thread at a time.
class StagedUpload {
 public:
  static StatusOr<StagedUpload> create();

  // `produce(staging, offset, bytes)` writes the bytes from `offset` on of what is to stand at `to`; called in
  // ascending order, with offsets that are multiples of 4096.
  Status copy(void* to, size_t bytes, absl::FunctionRef<void(std::byte* staging, size_t offset, size_t bytes)> produce);

  // Waits until everything is copied.
  Status finish();

 private:
  struct Half {
    PinnedBuffer memory;
    CudaEvent copied;
    bool in_use = false;
  };
  StagedUpload(CudaStream stream, std::array<Half, 2> halves)
      : stream_(std::move(stream)), halves_(std::move(halves)) {}

  CudaStream stream_;
  std::array<Half, 2> halves_;
  size_t next_ = 0;
};

}  // namespace onepass
