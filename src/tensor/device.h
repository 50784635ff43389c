// Where memory lives and work runs.
#pragma once

#include <string_view>

#include "base/cpu_features.h"
#include "base/thread_pool.h"

namespace onepass {

enum class DeviceKind { kCpu, kCuda };

inline std::string_view to_string(DeviceKind kind) { return kind == DeviceKind::kCpu ? "cpu" : "cuda"; }

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;  // of the GPU; 0 on the CPU
};

// The place in whose order work is done: every run_* function takes one. On the CPU the work is done when the call
// returns, by the pool's threads with kernels of one instruction set; a CUDA stream's work is queued. Does not own the
// pool.
struct Stream {
  Device device;
  ThreadPool* pool = nullptr;      // CPU only
  CpuIsa isa = CpuIsa::kPortable;  // CPU only
};

}  // namespace onepass
