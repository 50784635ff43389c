// What a library that others call must ask and put back: the GPU that is current, and whether a stream is being
// captured.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/status.h"
#include "tensor/cuda/cuda_status.h"

namespace onepass {

// Makes a GPU current while it lives.
class CurrentGpu {
 public:
  explicit CurrentGpu(int index) : index_(index) {
    status_ = cuda_status(cudaGetDevice(&before_), "cudaGetDevice");
    if (status_.ok() && before_ != index_) status_ = cuda_status(cudaSetDevice(index_), "cudaSetDevice");
  }
  ~CurrentGpu() {
    if (before_ >= 0 && before_ != index_) cudaSetDevice(before_);
  }
  CurrentGpu(const CurrentGpu&) = delete;
  CurrentGpu& operator=(const CurrentGpu&) = delete;

  const Status& status() const { return status_; }

 private:
  int index_;
  int before_ = -1;
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
