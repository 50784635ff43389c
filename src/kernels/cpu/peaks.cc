#include "kernels/cpu/peaks.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "kernels/cpu/isa_dispatch.h"
#include "tensor/buffer.h"

namespace onepass {
namespace {

// Seconds of the fastest of `rounds` runs of job on every thread.
double best_seconds(const Stream& stream, int rounds, absl::FunctionRef<void(int thread)> job) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  for (int round = 0; round < rounds; ++round) {
    const Clock::time_point start = Clock::now();
    stream.pool->run(job);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

double arithmetic_peak(const Stream& stream, double (*kernel)(int64_t)) {
  if (kernel == nullptr) return 0.0;
  constexpr int64_t kIterations = 4'000'000;  // about 10 ms
  std::atomic<double> flops{0.0};
  const double seconds = best_seconds(stream, 8, [&](int) { flops = kernel(kIterations); });
  return flops * stream.pool->num_threads() / seconds * 1e-9;
}

}  // namespace

double measure_dram_read_bandwidth(const Stream& stream) {
  constexpr size_t kBytes = size_t{512} << 20;
  auto buffer = Buffer::allocate(kBytes);
  if (!buffer.ok()) return 0.0;
  const int threads = stream.pool->num_threads();
  const size_t share = kBytes / threads / 4096 * 4096;
  stream.pool->run([&](int thread) { std::memset(buffer->data() + thread * share, 1, share); });
  std::atomic<uint64_t> sink{0};
  const double seconds = best_seconds(stream, 8, [&](int thread) {
    sink += cpu::peak_kernels(stream.isa).read(buffer->data() + thread * share, static_cast<int64_t>(share));
  });
  return static_cast<double>(share) * threads / seconds * 1e-9;
}

double seconds_to_read(const void* data, int64_t bytes, const Stream& stream) {
  const int64_t share = bytes / stream.pool->num_threads() / 64 * 64;
  std::atomic<uint64_t> sink{0};
  return best_seconds(stream, 1, [&](int thread) {
    sink += cpu::peak_kernels(stream.isa).read(static_cast<const char*>(data) + thread * share, share);
  });
}

double measure_fp32_fma_peak(const Stream& stream) {
  return arithmetic_peak(stream, cpu::peak_kernels(stream.isa).fp32_fma);
}

double measure_bf16_dot_peak(const Stream& stream) {
  return arithmetic_peak(stream, cpu::peak_kernels(stream.isa).bf16_dot);
}

}  // namespace onepass
