// A step's tokens to the device and its logits back.
#pragma once

#include <span>

#include "engine/batch.h"
#include "models/decoder.h"
#include "tensor/cuda/pinned_buffer.h"
#include "tensor/device_buffer.h"

namespace onepass {

// On the CPU the device reads the batch and writes the logits in place; for a GPU both go through page-locked memory,
// one copy each. Used by one thread at a time.
class StepTransfer {
 public:
  static StatusOr<StepTransfer> create(const DecoderWorkspace::Limits& limits, int vocab_size, const Device& device);

  // What the forward pass reads, and where it writes. On a GPU the copy is queued; the one before it must be done.
  StatusOr<ForwardInput> upload(const Batch& batch, const Stream& stream);

  int64_t logits_row_stride() const { return logits_row_stride_; }

  // The first `rows` rows of them, for the host; waits for the stream. The caller may change them until the next step.
  StatusOr<std::span<float>> download(int rows, const Stream& stream);

 private:
  int vocab_size_ = 0;
  int64_t logits_row_stride_ = 0;  // vocab_size on the CPU; rows of 16-byte units on a GPU
  DeviceBuffer logits_;            // [max_outputs, logits_row_stride]

  // Of a GPU: input_ids, then output_rows.
  PinnedBuffer staging_;
  DeviceBuffer input_;
  PinnedBuffer host_logits_;  // [max_outputs, vocab_size]
};

}  // namespace onepass
