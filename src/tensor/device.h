// Where memory lives and work runs.
#pragma once

#include <string>
#include <string_view>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"

struct CUstream_st;  // cudaStream_t points to it

namespace onepass {

enum class DeviceKind { kCpu, kCuda };

inline std::string_view to_string(DeviceKind kind) { return kind == DeviceKind::kCpu ? "cpu" : "cuda"; }

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;  // of the GPU; 0 on the CPU
};

// "cpu", "cuda" (the first GPU) or "cuda:1"; and back.
StatusOr<Device> parse_device(std::string_view name);
std::string to_string(const Device& device);

// The place in whose order work is done: every run_* function takes one. On the CPU the work is done when the call
// returns, by the pool's threads with kernels of one instruction set; a CUDA stream's work is queued, and the GPU is
// current in the calling thread. Owns neither pool nor stream.
struct Stream {
  Device device;
  ThreadPool* pool = nullptr;      // of the CPU; beside a GPU, for the host's share of the work
  CpuIsa isa = CpuIsa::kPortable;  // CPU only
  CUstream_st* cuda = nullptr;     // GPU only
};

}  // namespace onepass
