#include "tensor/cuda/cuda_buffer.h"

#include <algorithm>

#include "base/check.h"
#include "tensor/cuda/cuda_status.h"

namespace onepass {

StatusOr<CudaBuffer> CudaBuffer::allocate(size_t size) {
  CudaBuffer buffer;
  const Status status = cuda_status(cudaMalloc(&buffer.data_, std::max<size_t>(size, 1)), "cudaMalloc");
  if (!status.ok()) return annotate(status, size, " bytes of device memory");
  buffer.size_ = size;
  return buffer;
}

StatusOr<CudaBuffer> CudaBuffer::allocate_zeroed(size_t size) {
  ONEPASS_ASSIGN_OR_RETURN(CudaBuffer buffer, allocate(size));
  ONEPASS_RETURN_IF_ERROR(buffer.fill(0));
  return buffer;
}

StatusOr<CudaBuffer> CudaBuffer::copy_of(std::span<const std::byte> bytes) {
  ONEPASS_ASSIGN_OR_RETURN(CudaBuffer buffer, allocate(bytes.size()));
  ONEPASS_RETURN_IF_ERROR(buffer.upload(bytes));
  return buffer;
}

CudaBuffer::~CudaBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}

Status CudaBuffer::upload(std::span<const std::byte> bytes, size_t offset) {
  ONEPASS_CHECK_LE(offset + bytes.size(), size_);
  if (bytes.empty()) return ok_status();
  ONEPASS_RETURN_IF_ERROR(cuda_status(
      cudaMemcpy(as<std::byte>() + offset, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "copy to the GPU"));
  // The runtime returns when ordinary host memory has been staged, and streams that do not wait for the default one
  // would find what was there before.
  return cuda_status(cudaStreamSynchronize(nullptr), "copy to the GPU");
}

Status CudaBuffer::download(std::span<std::byte> bytes, size_t offset) const {
  ONEPASS_CHECK_LE(offset + bytes.size(), size_);
  if (bytes.empty()) return ok_status();
  return cuda_status(cudaMemcpy(bytes.data(), as<std::byte>() + offset, bytes.size(), cudaMemcpyDeviceToHost),
                     "copy from the GPU");
}

Status CudaBuffer::fill(uint8_t value) {
  if (size_ == 0) return ok_status();
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaMemset(data_, value, size_), "cudaMemset"));
  return cuda_status(cudaDeviceSynchronize(), "cudaMemset");
}

}  // namespace onepass
