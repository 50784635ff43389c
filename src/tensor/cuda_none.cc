// The CUDA side of this room in a binary built without nvcc: there is no GPU, and what needs one is refused.
#include "tensor/cuda/cuda_buffer.h"
#include "tensor/cuda/cuda_copy.h"
#include "tensor/cuda/cuda_stream.h"
#include "tensor/cuda/pinned_buffer.h"
#include "tensor/cuda/upload_kernel.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

Status no_cuda() { return not_found("this binary was built without CUDA"); }

}  // namespace

CudaInfo query_cuda() {
  CudaInfo info;
  info.problem = "this binary was built without CUDA";
  return info;
}

StatusOr<int> count_gpus() { return no_cuda(); }
StatusOr<GpuInfo> query_gpu(int) { return no_cuda(); }

StatusOr<CudaBuffer> CudaBuffer::allocate(size_t) { return no_cuda(); }
StatusOr<CudaBuffer> CudaBuffer::allocate_zeroed(size_t) { return no_cuda(); }
CudaBuffer::~CudaBuffer() = default;
Status CudaBuffer::upload(std::span<const std::byte>, size_t) { return no_cuda(); }
Status CudaBuffer::fill(uint8_t) { return no_cuda(); }

StatusOr<PinnedBuffer> PinnedBuffer::allocate(size_t) { return no_cuda(); }
PinnedBuffer::~PinnedBuffer() = default;

StatusOr<CudaStream> CudaStream::create() { return no_cuda(); }
CudaStream::~CudaStream() = default;

Status CudaStream::synchronize() const { return no_cuda(); }
Status CudaStream::wait(CUstream_st*, const CudaEvent&) { return no_cuda(); }
StatusOr<CudaEvent> CudaEvent::create() { return no_cuda(); }
CudaEvent::~CudaEvent() = default;
Status CudaEvent::record(CUstream_st*) { return no_cuda(); }
StatusOr<double> CudaEvent::seconds_since(const CudaEvent&) const { return no_cuda(); }
Status CudaEvent::synchronize() const { return no_cuda(); }
StatusOr<CudaGraph> CudaGraph::capture(const CudaStream&, absl::FunctionRef<Status()>) { return no_cuda(); }
CudaGraph::~CudaGraph() = default;
Status CudaGraph::launch(const CudaStream&) const { return no_cuda(); }

Status copy_async(void*, const void*, size_t, CUstream_st*) { return no_cuda(); }
Status copy_rows_async(void*, size_t, const void*, size_t, size_t, size_t, CUstream_st*) { return no_cuda(); }
Status upload_by_kernel(void*, const void*, size_t, CUstream_st*) { return no_cuda(); }
Status set_first_upload(const CudaGraph&, void*, const void*, size_t) { return no_cuda(); }
Status synchronize(CUstream_st*) { return no_cuda(); }
StatusOr<CudaMemory> cuda_memory() { return no_cuda(); }
Status set_current_gpu(int) { return no_cuda(); }

}  // namespace onepass
