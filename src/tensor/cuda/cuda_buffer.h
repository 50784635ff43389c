// Owned device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/status.h"

namespace onepass {

// Memory of the current GPU, 256-byte aligned. Moves, does not copy. Copies and fills are done when the call returns,
// and are ordered behind nothing but the default stream: other streams' work on the same memory must be over.
class CudaBuffer {
 public:
  CudaBuffer() = default;
  // Holds whatever the memory held. An error says how much was asked for; size 0 gives an address too.
  static StatusOr<CudaBuffer> allocate(size_t size);
  static StatusOr<CudaBuffer> allocate_zeroed(size_t size);
  static StatusOr<CudaBuffer> copy_of(std::span<const std::byte> bytes);
  CudaBuffer(CudaBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  CudaBuffer& operator=(CudaBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~CudaBuffer();

  // From and to host memory; offset + bytes.size() is at most size().
  Status upload(std::span<const std::byte> bytes, size_t offset = 0);
  Status download(std::span<std::byte> bytes, size_t offset = 0) const;
  Status fill(uint8_t value);

  void* data() const { return data_; }
  size_t size() const { return size_; }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace onepass
