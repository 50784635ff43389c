#include "engine/logits_buffer.h"

#include "tensor/cuda/cuda_copy.h"

namespace onepass {

StatusOr<LogitsBuffer> LogitsBuffer::create(int max_rows, int vocab_size, const Device& device) {
  LogitsBuffer buffer;
  buffer.max_rows_ = max_rows;
  buffer.vocab_size_ = vocab_size;
  buffer.row_stride_ = device.kind == DeviceKind::kCpu ? vocab_size : (vocab_size + 3) / 4 * 4;
  ONEPASS_ASSIGN_OR_RETURN(buffer.logits_,
                           DeviceBuffer::allocate(max_rows * buffer.row_stride_ * sizeof(float), device));
  return buffer;
}

StatusOr<std::span<float>> LogitsBuffer::download(int rows, const Stream& stream) {
  const size_t count = static_cast<size_t>(rows) * vocab_size_;
  if (stream.device.kind == DeviceKind::kCpu) return std::span(logits_.as<float>(), count);
  const size_t row = vocab_size_ * sizeof(float);
  if (on_host_.size() == 0) {
    ONEPASS_ASSIGN_OR_RETURN(on_host_, PinnedBuffer::allocate(max_rows_ * row));
  }
  ONEPASS_RETURN_IF_ERROR(
      copy_rows_async(on_host_.data(), row, logits_.data(), row_stride_ * sizeof(float), row, rows, stream.cuda));
  ONEPASS_RETURN_IF_ERROR(synchronize(stream.cuda));
  return std::span(on_host_.as<float>(), count);
}

}  // namespace onepass
