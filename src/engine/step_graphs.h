// Captured steps, one for each of a few shapes: a step of many small kernels is one launch.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "base/status.h"
#include "engine/batch.h"
#include "tensor/cuda/cuda_stream.h"

namespace onepass {

// The shapes to which steps are padded, and the graphs of those that have been captured. The graphs share all memory:
// each reads and writes the buffers that the eager step does. Used by one thread at a time.
//
// Steps of decodes: 1, 2, 4, 8, 16, 24, 32, ..., 256, 272, ... requests up to the limit, which is the last, or to
// kMostDecodes: larger steps are worth their launches. Steps of prompts: up to kPrefillRequests - 1 of them, 16, 32,
// 48, 64, 96, 128, 192, ... tokens up to the limit or kMostPrefillTokens, beyond which the launches are hidden behind
// the work of all but the smallest models. What decodes and reads prompts at once is not captured: too many shapes.
class StepGraphs {
 public:
  StepGraphs() = default;  // none
  StepGraphs(int max_requests, int max_tokens);

  static constexpr int kMostDecodes = 512;
  static constexpr int kMostPrefillTokens = 1024;
  static constexpr int kPrefillRequests = 8;  // of a captured step of prompts, one of them the padding's

  // The largest first.
  const std::vector<StepShape>& shapes() const { return shapes_; }

  // The smallest one to which `batch` can be padded; nothing when there is none.
  std::optional<StepShape> shape_for(const Batch& batch) const;

  // `prepare` sets the inputs of a step of `shape`, `queue` puts the step on the stream, its upload first, once to be
  // run, so that whatever it makes at first use is there, and once to be captured. Largest first.
  Status capture(const StepShape& shape, const CudaStream& stream, absl::FunctionRef<Status()> prepare,
                 absl::FunctionRef<Status()> queue);

  // The graph of a shape, null when it has not been captured.
  const CudaGraph* graph(const StepShape& shape) const;

  // Forgets the graphs, not the shapes.
  void clear() { graphs_.clear(); }

 private:
  std::vector<StepShape> shapes_;
  std::map<StepShape, CudaGraph> graphs_;
};

}  // namespace onepass
