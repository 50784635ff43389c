// Owned host memory that a GPU copies from and to by itself.
#pragma once

#include <cstddef>
#include <utility>

#include "base/status.h"

namespace onepass {

// Page-locked, so that copies between it and a GPU are queued like any other work. Holds whatever the memory held.
// Moves, does not copy.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  // An error says how much was asked for; size 0 gives an address too.
  static StatusOr<PinnedBuffer> allocate(size_t size);
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~PinnedBuffer();

  std::byte* data() const { return static_cast<std::byte*>(data_); }
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
