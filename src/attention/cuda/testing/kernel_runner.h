// A CUDA attention kernel with the scratch memory that it asks for.
#pragma once

#include "attention/cuda/flash_attention_cuda.h"
#include "tensor/cuda/cuda_buffer.h"
#include "tensor/cuda/cuda_stream.h"

namespace onepass {

class KernelRunner {
 public:
  // Scratch for problems of the sizes in `params`, zeroed, with guard bytes behind it. `kernel` must outlive the
  // runner.
  static StatusOr<KernelRunner> make(const CudaAttentionKernel& kernel, const GpuInfo& gpu,
                                     const AttentionParams& params);

  // These queue work.
  Status plan(const AttentionParams& params) const;
  Status run(const AttentionParams& params) const;
  // What plan() and then run() queue, as a graph that is not run yet.
  StatusOr<CudaGraph> capture(const AttentionParams& params) const;

  // plan(), run() and the wait for the end.
  Status attend(const AttentionParams& params) const;
  // Waits; an error when the kernel wrote behind its scratch.
  Status finish() const;

  const CudaStream& stream() const { return stream_; }

 private:
  KernelRunner(const CudaAttentionKernel& kernel, GpuInfo gpu, CudaStream stream)
      : kernel_(&kernel), gpu_(std::move(gpu)), stream_(std::move(stream)) {}
  CudaScratch scratch() const { return {.data = memory_.data(), .bytes = bytes_}; }

  const CudaAttentionKernel* kernel_;
  GpuInfo gpu_;
  CudaStream stream_;
  CudaBuffer memory_;
  int64_t bytes_ = 0;
};

}  // namespace onepass
