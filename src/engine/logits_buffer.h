// A step's logits, where the device writes them, and for whoever wants to see them on the host.
#pragma once

#include <span>

#include "tensor/cuda/pinned_buffer.h"
#include "tensor/device_buffer.h"

namespace onepass {

// Used by one thread at a time.
class LogitsBuffer {
 public:
  static StatusOr<LogitsBuffer> create(int max_rows, int vocab_size, const Device& device);

  float* data() const { return logits_.as<float>(); }  // [max_rows, row_stride] in the device's memory
  int64_t row_stride() const { return row_stride_; }   // vocab_size on the CPU; rows of 16-byte units on a GPU

  // The first `rows` rows, [rows, vocab_size], for the host; waits for the stream. The caller may change them until the
  // next step.
  StatusOr<std::span<float>> download(int rows, const Stream& stream);

 private:
  int max_rows_ = 0;
  int vocab_size_ = 0;
  int64_t row_stride_ = 0;
  DeviceBuffer logits_;
  PinnedBuffer on_host_;  // of a GPU's, made when first asked for: an engine that only samples needs none
};

}  // namespace onepass
