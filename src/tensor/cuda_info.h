// What NVIDIA hardware this process can use: asked once, by commands that list or choose devices.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace onepass {

struct GpuInfo {
  std::string name;            // "NVIDIA H100 80GB HBM3"
  int compute_capability = 0;  // 10 * major + minor: 90 for Hopper
  int multiprocessors = 0;     // SMs
  int64_t memory_bytes = 0;    // device memory in all
  int64_t l2_cache_bytes = 0;
  int64_t shared_memory_bytes = 0;  // the most that one thread block may ask for
  bool usable = false;              // this binary carries kernels for it
};

struct CudaInfo {
  bool compiled = false;    // this binary has CUDA code at all
  int runtime_version = 0;  // of the runtime linked in, 1000 * major + 10 * minor
  int driver_version = 0;   // the newest CUDA that the machine's driver supports; 0 without a driver
  std::string problem;      // why there are no GPUs, one line; empty when there are
  std::vector<GpuInfo> gpus;
};

// Never fails and, without a driver, takes no time: a machine without NVIDIA's files is one with `problem` set. With
// one, the first call creates a CUDA context on each GPU (a few hundred milliseconds each).
CudaInfo query_cuda();

// The GPUs by number alone, without a context on any: at least one, or an error that says why there is none.
StatusOr<int> count_gpus();

// One GPU by CUDA's number, on which it creates a context; on no other one. Leaves the current GPU as it was.
StatusOr<GpuInfo> query_gpu(int index);

}  // namespace onepass
