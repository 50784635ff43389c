// What the host tells the device before a step: many small arrays, one copy.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>

#include "base/status.h"
#include "tensor/buffer.h"
#include "tensor/cuda/cuda_stream.h"
#include "tensor/cuda/pinned_buffer.h"
#include "tensor/device.h"
#include "tensor/device_buffer.h"

namespace onepass {

// Arrays are added one after the other and lie so on the device: steps that add arrays of the same sizes in the same
// order find them at the same addresses, as captured graphs need it. On the CPU the device's block is the host's.
//
// The copy of a step is queued behind the steps before it, which may still read the block. The host's side of it is
// kept until the step after the next one begins: by then the caller knows that the copy has been made.
//
// Used by one thread at a time.
class StepUpload {
 public:
  // For steps of at most `capacity` bytes, kAlignment more for each array.
  static StatusOr<StepUpload> create(size_t capacity, const Device& device);

  static constexpr size_t kAlignment = 16;
  static constexpr int kSteps = 2;  // whose arrays are kept on the host

  void begin();

  // An array of the step, written by the caller before send() and read by the device at `device`.
  template <typename T>
  struct Array {
    std::span<T> host;
    T* device;
  };
  // REQUIRES: the step keeps to the capacity.
  template <typename T>
  Array<T> reserve(size_t count) {
    const size_t offset = take(count * sizeof(T));
    return {{reinterpret_cast<T*>(host() + offset), count}, reinterpret_cast<T*>(device_ + offset)};
  }
  template <typename T>
  const T* add(std::span<const T> values) {
    const Array<T> array = reserve<T>(values.size());
    std::copy(values.begin(), values.end(), array.host.begin());
    return array.device;
  }

  // Queues the copy of all arrays.
  Status send(const Stream& stream);

  // The copy as a kernel: what a graph is captured with first, so that each launch can bring the arrays of its step.
  Status send_by_kernel(const Stream& stream);
  // The next launch of such a graph copies the present step's arrays.
  Status send_with(const CudaGraph& graph);

 private:
  std::byte* host() const { return is_on_gpu_ ? staging_[current_].data() : device_; }
  // Room for `size` bytes: their offset.
  size_t take(size_t size);

  bool is_on_gpu_ = false;
  size_t capacity_ = 0;
  std::array<PinnedBuffer, kSteps> staging_;  // in turns
  DeviceBuffer block_;
  std::byte* device_ = nullptr;
  int current_ = 0;
  size_t used_ = 0;
};

}  // namespace onepass
