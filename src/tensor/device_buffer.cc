#include "tensor/device_buffer.h"

#include <cstring>

#include "base/check.h"

namespace onepass {

StatusOr<DeviceBuffer> DeviceBuffer::allocate(size_t size, const Device& device) {
  ONEPASS_ASSIGN_OR_RETURN(DeviceBuffer buffer, allocate_uninitialized(size, device));
  if (device.kind == DeviceKind::kCuda) ONEPASS_RETURN_IF_ERROR(buffer.gpu_.fill(0));
  return buffer;
}

StatusOr<DeviceBuffer> DeviceBuffer::allocate_uninitialized(size_t size, const Device& device) {
  DeviceBuffer buffer;
  if (device.kind == DeviceKind::kCuda) {
    ONEPASS_ASSIGN_OR_RETURN(buffer.gpu_, CudaBuffer::allocate(size));
    buffer.data_ = buffer.gpu_.data();
  } else {
    ONEPASS_ASSIGN_OR_RETURN(buffer.host_, Buffer::allocate(size));
    buffer.data_ = buffer.host_.data();
  }
  buffer.size_ = size;
  return buffer;
}

Status DeviceBuffer::upload(std::span<const std::byte> bytes) {
  ONEPASS_CHECK_LE(bytes.size(), size_);
  if (gpu_.data() != nullptr) return gpu_.upload(bytes);
  if (!bytes.empty()) std::memcpy(data_, bytes.data(), bytes.size());
  return ok_status();
}

}  // namespace onepass
