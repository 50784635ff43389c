// What a library that others call must ask and put back: the GPU that is current, and whether a stream is being
// captured.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/status.h"
#include "tensor/cuda/cuda_status.h"

namespace onepass {

// Makes a GPU current in the calling thread while it lives; then what was current before is so again, be it nothing. No
// other GPU is touched: to put another back with cudaSetDevice() would make a context there, hundreds of megabytes,
// where there was none.
class CurrentGpu {
 public:
  explicit CurrentGpu(int index);
  ~CurrentGpu();
  CurrentGpu(const CurrentGpu&) = delete;
  CurrentGpu& operator=(const CurrentGpu&) = delete;

  const Status& status() const { return status_; }

 private:
  int device_ = -1;  // the driver's; -1: nothing to put back
  Status status_;
};

// Numbers the captures of a process; 0: the stream is not being captured.
inline StatusOr<uint64_t> capture_id(CUstream_st* stream) {
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  unsigned long long number = 0;  // NOLINT(google-runtime-int): the runtime's own type
  ONEPASS_RETURN_IF_ERROR(
      cuda_status(cudaStreamGetCaptureInfo(stream, &capturing, &number), "cudaStreamGetCaptureInfo"));
  return capturing != cudaStreamCaptureStatusNone ? number : 0;
}

}  // namespace onepass
