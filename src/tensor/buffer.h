// Owned, aligned memory.
#pragma once

#include <cstddef>
#include <utility>

#include "base/status.h"

namespace onepass {

// Host memory, 64-byte aligned; from 2 MiB on it is mapped apart, aligned to and advised for huge pages, and zero
// (page faults and TLB misses cost a third of the bandwidth otherwise). Moves, does not copy.
class Buffer {
 public:
  Buffer() = default;
  // An error says how much was asked for. Small buffers are zeroed too.
  static StatusOr<Buffer> allocate(size_t size);
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace onepass
