#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

#include "base/check.h"
#include "base/strings.h"

namespace onepass {
namespace {

void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins for a while, then blocks, until `value` differs from `old`.
template <typename T>
void wait_for_change(const std::atomic<T>& value, T old) {
  constexpr auto kSpin = std::chrono::microseconds(50);
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      cpu_relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

int available_processors() {
  cpu_set_t set;
  return ::sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  ONEPASS_CHECK_GE(num_threads, 1);
  try {
    for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { worker(thread); });
  } catch (const std::exception& error) {
    const size_t started = workers_.size() + 1;
    stop();
    throw std::runtime_error(
        str_cat("threads: expected ", num_threads, ", could start only ", started, ": ", error.what()));
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

void ThreadPool::execute(int thread) {
  try {
    (*job_)(thread);
  } catch (...) {
    std::lock_guard<std::mutex> lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::run(absl::FunctionRef<void(int)> job) {
  job_ = &job;
  if (num_threads_ > 1) {
    running_.store(num_threads_ - 1, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }
  execute(0);
  for (int left = running_.load(std::memory_order_acquire); left != 0;
       left = running_.load(std::memory_order_acquire)) {
    wait_for_change(running_, left);
  }
  job_ = nullptr;
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::worker(int thread) {
  uint32_t seen = 0;
  while (true) {
    wait_for_change(generation_, seen);
    // A new job cannot start before this worker has finished the last one, so no generation is skipped.
    ++seen;
    if (stop_.load(std::memory_order_relaxed)) return;
    execute(thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_all();
  }
}

void ThreadPool::parallel_for(int64_t count, int64_t grain, absl::FunctionRef<void(int64_t, int64_t, int)> job) {
  ONEPASS_CHECK_GE(grain, 1);
  const int64_t grains = (count + grain - 1) / grain;
  if (grains <= 1 || num_threads_ == 1) {
    if (count > 0) job(0, count, 0);
    return;
  }
  run([&](int thread) {
    const int64_t begin = grains * thread / num_threads_ * grain;
    const int64_t end = std::min(count, grains * (thread + 1) / num_threads_ * grain);
    if (begin < end) job(begin, end, thread);
  });
}

void ThreadPool::parallel_dynamic(int64_t count, absl::FunctionRef<void(int64_t, int)> job) {
  if (count <= 1 || num_threads_ == 1) {
    for (int64_t index = 0; index < count; ++index) job(index, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  run([&](int thread) {
    for (int64_t index = next.fetch_add(1); index < count; index = next.fetch_add(1)) job(index, thread);
  });
}

}  // namespace onepass
