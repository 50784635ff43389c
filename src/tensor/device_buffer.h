// Owned memory of whichever device a stream works on.
#pragma once

#include <cstddef>
#include <span>

#include "base/status.h"
#include "tensor/buffer.h"
#include "tensor/cuda/cuda_buffer.h"
#include "tensor/device.h"

namespace onepass {

// A Buffer on the CPU, a CudaBuffer on a GPU (which must be current). Moves, does not copy.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // Zero at first on either device.
  static StatusOr<DeviceBuffer> allocate(size_t size, const Device& device);
  // For what is written before it is read.
  static StatusOr<DeviceBuffer> allocate_uninitialized(size_t size, const Device& device);

  // From host memory, at most size() bytes; done when it returns.
  Status upload(std::span<const std::byte> bytes);

  void* data() const { return data_; }
  size_t size() const { return size_; }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Buffer host_;
  CudaBuffer gpu_;
  void* data_ = nullptr;  // of the one that is used
  size_t size_ = 0;
};

}  // namespace onepass
