#include "engine/step_transfer.h"

#include <algorithm>

#include "tensor/cuda/cuda_copy.h"

namespace onepass {

StatusOr<StepTransfer> StepTransfer::create(const DecoderWorkspace::Limits& limits, int vocab_size,
                                            const Device& device) {
  StepTransfer transfer;
  transfer.vocab_size_ = vocab_size;
  transfer.logits_row_stride_ = device.kind == DeviceKind::kCpu ? vocab_size : (vocab_size + 3) / 4 * 4;
  ONEPASS_ASSIGN_OR_RETURN(
      transfer.logits_,
      DeviceBuffer::allocate(limits.max_outputs * transfer.logits_row_stride_ * sizeof(float), device));
  if (device.kind == DeviceKind::kCpu) return transfer;
  const size_t input_bytes = (static_cast<size_t>(limits.max_tokens) + limits.max_outputs) * sizeof(int32_t);
  ONEPASS_ASSIGN_OR_RETURN(transfer.staging_, PinnedBuffer::allocate(input_bytes));
  ONEPASS_ASSIGN_OR_RETURN(transfer.input_, DeviceBuffer::allocate(input_bytes, device));
  ONEPASS_ASSIGN_OR_RETURN(transfer.host_logits_, PinnedBuffer::allocate(static_cast<size_t>(limits.max_outputs) *
                                                                         vocab_size * sizeof(float)));
  return transfer;
}

StatusOr<ForwardInput> StepTransfer::upload(const Batch& batch, const Stream& stream) {
  ForwardInput input{.num_tokens = batch.num_tokens(),
                     .input_ids = batch.input_ids.data(),
                     .num_output_rows = static_cast<int>(batch.output_rows.size()),
                     .output_rows = batch.output_rows.data(),
                     .logits = logits_.as<float>(),
                     .logits_row_stride = logits_row_stride_};
  if (stream.device.kind == DeviceKind::kCpu) return input;
  auto* const staging = staging_.as<int32_t>();
  const auto end = std::copy(batch.input_ids.begin(), batch.input_ids.end(), staging);
  std::copy(batch.output_rows.begin(), batch.output_rows.end(), end);
  const size_t count = batch.input_ids.size() + batch.output_rows.size();
  ONEPASS_RETURN_IF_ERROR(copy_async(input_.data(), staging, count * sizeof(int32_t), stream.cuda));
  input.input_ids = input_.as<int32_t>();
  input.output_rows = input_.as<int32_t>() + batch.num_tokens();
  return input;
}

StatusOr<std::span<float>> StepTransfer::download(int rows, const Stream& stream) {
  const size_t count = static_cast<size_t>(rows) * vocab_size_;
  if (stream.device.kind == DeviceKind::kCpu) return std::span(logits_.as<float>(), count);
  const size_t row = vocab_size_ * sizeof(float);
  ONEPASS_RETURN_IF_ERROR(copy_rows_async(host_logits_.data(), row, logits_.data(), logits_row_stride_ * sizeof(float),
                                          row, rows, stream.cuda));
  ONEPASS_RETURN_IF_ERROR(synchronize(stream.cuda));
  return std::span(host_logits_.as<float>(), count);
}

}  // namespace onepass
