#include "tensor/step_upload.h"

#include "base/check.h"
#include "tensor/cuda/cuda_copy.h"
#include "tensor/cuda/upload_kernel.h"

namespace onepass {

StatusOr<StepUpload> StepUpload::create(size_t capacity, const Device& device) {
  StepUpload upload;
  upload.is_on_gpu_ = device.kind == DeviceKind::kCuda;
  upload.capacity_ = capacity;
  ONEPASS_ASSIGN_OR_RETURN(upload.block_, DeviceBuffer::allocate(capacity, device));
  upload.device_ = upload.block_.as<std::byte>();
  if (!upload.is_on_gpu_) return upload;
  for (PinnedBuffer& staging : upload.staging_) {
    ONEPASS_ASSIGN_OR_RETURN(staging, PinnedBuffer::allocate(capacity));
  }
  return upload;
}

void StepUpload::begin() {
  current_ = (current_ + 1) % kSteps;
  used_ = 0;
}

size_t StepUpload::take(size_t size) {
  const size_t offset = used_;
  used_ = (used_ + size + kAlignment - 1) / kAlignment * kAlignment;
  ONEPASS_CHECK_LE(used_, capacity_);
  return offset;
}

Status StepUpload::send(const Stream& stream) {
  if (!is_on_gpu_) return ok_status();
  // What takes 10 us on its way is better copied by the engine that is made for it.
  constexpr size_t kMostByKernel = size_t{256} << 10;
  if (used_ > kMostByKernel) return copy_async(device_, staging_[current_].data(), used_, stream.cuda);
  return send_by_kernel(stream);
}

Status StepUpload::send_by_kernel(const Stream& stream) {
  return upload_by_kernel(device_, staging_[current_].data(), used_, stream.cuda);
}

Status StepUpload::send_with(const CudaGraph& graph) {
  return set_first_upload(graph, device_, staging_[current_].data(), used_);
}

}  // namespace onepass
