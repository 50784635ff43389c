// Fork and join for the CPU kernels: one job at a time runs on every thread of the pool.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace onepass {

// The processors that this process may use: containers and taskset narrow them. At least 1.
int available_processors();

// run() may be called from one thread at a time, and not from inside a job. A model forward pass forks some hundred
// times a token, so a worker that has finished spins for about 50 us before it blocks (a futex wake costs about 5 us
// each way, a spin hand-over 0.3 us); an idle pool costs no CPU.
class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller, which works too: one thread means no thread is started. Throws
  // std::runtime_error when the system has no more threads to give.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls job(thread) once for every thread 0 .. num_threads-1 and returns when all are done. The first exception that
  // a job throws is rethrown here.
  void run(absl::FunctionRef<void(int thread)> job);

  // Splits [0, count) into one contiguous range a thread, each a multiple of `grain` but for the last, and calls
  // job(begin, end, thread) for the non-empty ones. The split depends on count, grain and num_threads alone.
  void parallel_for(int64_t count, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end, int thread)> job);

  // Calls job(index, thread) for every index of [0, count); threads take the next index as they become free: for work
  // items of unequal cost.
  void parallel_dynamic(int64_t count, absl::FunctionRef<void(int64_t index, int thread)> job);

 private:
  void stop();
  void worker(int thread);
  void execute(int thread);

  const int num_threads_;
  absl::FunctionRef<void(int)>* job_ = nullptr;  // valid while a run() is in progress
  std::atomic<uint32_t> generation_{0};          // bumped to start a job
  std::atomic<int> running_{0};                  // workers still in the current job
  std::atomic<bool> stop_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;  // guarded by error_mutex_
  std::vector<std::thread> workers_;
};

}  // namespace onepass
