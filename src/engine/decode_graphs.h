// Captured decode steps, one for each of a few batch sizes: a step of many small kernels is one launch.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "base/status.h"
#include "tensor/cuda/cuda_stream.h"

namespace onepass {

// The graphs share all memory: each reads and writes the buffers that the eager step does. Used by one thread at a
// time.
class DecodeGraphs {
 public:
  DecodeGraphs() = default;  // none
  // 1, 2, 4, 8, 16, 24, 32, ... up to max_requests, which is the last, or to kLargest: larger steps are worth their
  // launches.
  explicit DecodeGraphs(int max_requests);

  static constexpr int kLargest = 256;
  const std::vector<int>& sizes() const { return sizes_; }

  // The smallest size that holds `num_requests`; nothing when there is none.
  std::optional<int> size_for(int num_requests) const;

  // Of each size, from the largest to the smallest: `prepare(size)` brings a step's inputs to the device, `queue(size)`
  // puts the step on the stream, once to be run, so that whatever it makes at first use is there, and once to be
  // captured.
  Status capture(const CudaStream& stream, absl::FunctionRef<Status(int size)> prepare,
                 absl::FunctionRef<Status(int size)> queue);

  // REQUIRES: captured.
  Status launch(int size, const CudaStream& stream) const { return graphs_.at(size).launch(stream); }

 private:
  std::vector<int> sizes_;  // ascending
  std::map<int, CudaGraph> graphs_;
};

}  // namespace onepass
