#include "attention/cuda/testing/kernel_runner.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace onepass {
namespace {

constexpr int kGuardBytes = 4096;
constexpr auto kGuard = [] {
  std::array<std::byte, kGuardBytes> guard{};
  for (int i = 0; i < kGuardBytes; ++i) guard[i] = std::byte(0xa5 ^ (i & 0xff));
  return guard;
}();

}  // namespace

StatusOr<KernelRunner> KernelRunner::make(const CudaAttentionKernel& kernel, const GpuInfo& gpu,
                                          const AttentionParams& params) {
  ONEPASS_ASSIGN_OR_RETURN(CudaStream stream, CudaStream::create());
  KernelRunner runner(kernel, gpu, std::move(stream));
  runner.bytes_ = kernel.scratch_bytes(params, gpu);
  ONEPASS_ASSIGN_OR_RETURN(runner.memory_, CudaBuffer::allocate_zeroed(runner.bytes_ + kGuardBytes));
  ONEPASS_RETURN_IF_ERROR(runner.memory_.upload(kGuard, runner.bytes_));
  return runner;
}

Status KernelRunner::plan(const AttentionParams& params) const {
  return kernel_->plan(params, gpu_, scratch(), stream_.get());
}

Status KernelRunner::run(const AttentionParams& params) const {
  return kernel_->run(params, gpu_, scratch(), stream_.get());
}

StatusOr<CudaGraph> KernelRunner::capture(const AttentionParams& params) const {
  return CudaGraph::capture(stream_, [&]() -> Status {
    ONEPASS_RETURN_IF_ERROR(plan(params));
    return run(params);
  });
}

Status KernelRunner::attend(const AttentionParams& params) const {
  ONEPASS_RETURN_IF_ERROR(plan(params));
  ONEPASS_RETURN_IF_ERROR(run(params));
  return finish();
}

Status KernelRunner::finish() const {
  ONEPASS_RETURN_IF_ERROR(stream_.synchronize());
  std::array<std::byte, kGuardBytes> guard;
  ONEPASS_RETURN_IF_ERROR(memory_.download(guard, bytes_));
  if (guard == kGuard) return ok_status();
  return absl::InternalError(str_cat("kernel ", kernel_->name, " wrote behind its ", bytes_, " bytes of scratch"));
}

}  // namespace onepass
