#include "tensor/cuda/cuda_copy.h"

#include "tensor/cuda/cuda_status.h"

namespace onepass {

Status copy_async(void* to, const void* from, size_t bytes, CUstream_st* stream) {
  if (bytes == 0) return ok_status();
  return cuda_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
}

Status copy_rows_async(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t bytes, size_t rows,
                       CUstream_st* stream) {
  if (bytes == 0 || rows == 0) return ok_status();
  return cuda_status(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, bytes, rows, cudaMemcpyDefault, stream),
                     "cudaMemcpy2DAsync");
}

Status synchronize(CUstream_st* stream) { return cuda_status(cudaStreamSynchronize(stream), "work on the GPU"); }

StatusOr<CudaMemory> cuda_memory() {
  CudaMemory memory;
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaMemGetInfo(&memory.free, &memory.total), "cudaMemGetInfo"));
  return memory;
}

Status set_current_gpu(int index) { return cuda_status(cudaSetDevice(index), "cudaSetDevice"); }

}  // namespace onepass
