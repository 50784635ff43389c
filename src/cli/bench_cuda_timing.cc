#include "cli/bench_cuda_timing.h"

#include <chrono>
#include <vector>

#include "cli/bench_attention.h"
#include "tensor/cuda/cuda_buffer.h"
#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

constexpr int64_t kCopyBytes = int64_t{1} << 30;
constexpr double kCopySeconds = 0.2;

}  // namespace

StatusOr<double> seconds_on(const CudaStream& stream, double budget, absl::FunctionRef<Status()> queue) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  ONEPASS_ASSIGN_OR_RETURN(CudaEvent before, CudaEvent::create());
  ONEPASS_ASSIGN_OR_RETURN(CudaEvent after, CudaEvent::create());
  const Clock::time_point warm_up = Clock::now();
  do {
    ONEPASS_RETURN_IF_ERROR(queue());
    ONEPASS_RETURN_IF_ERROR(stream.synchronize());
  } while (since(warm_up) < budget / 4);
  std::vector<double> times;
  const Clock::time_point begin = Clock::now();
  while (times.size() < 3 || since(begin) < budget) {
    ONEPASS_RETURN_IF_ERROR(before.record(stream));
    ONEPASS_RETURN_IF_ERROR(queue());
    ONEPASS_RETURN_IF_ERROR(after.record(stream));
    ONEPASS_ASSIGN_OR_RETURN(const double seconds, after.seconds_since(before));
    times.push_back(seconds);
  }
  return median(times);
}

StatusOr<double> measure_copy_bandwidth(const CudaStream& stream) {
  ONEPASS_ASSIGN_OR_RETURN(const CudaBuffer from, CudaBuffer::allocate_zeroed(kCopyBytes));
  ONEPASS_ASSIGN_OR_RETURN(const CudaBuffer to, CudaBuffer::allocate_zeroed(kCopyBytes));
  constexpr int kCopies = 4;
  const auto copy = [&]() -> Status {
    for (int i = 0; i < kCopies; ++i) {
      ONEPASS_RETURN_IF_ERROR(
          cuda_status(cudaMemcpyAsync(to.data(), from.data(), kCopyBytes, cudaMemcpyDeviceToDevice, stream.get()),
                      "copy on the GPU"));
    }
    return ok_status();
  };
  ONEPASS_ASSIGN_OR_RETURN(const double seconds, seconds_on(stream, kCopySeconds, copy));
  return 2.0 * kCopies * static_cast<double>(kCopyBytes) / seconds;
}

}  // namespace onepass
