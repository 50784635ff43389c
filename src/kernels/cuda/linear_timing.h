// The time that ways to compute a dense layer take, as a decoder has them: one layer after the other in a graph, each
// with weights that are not in the L2 cache.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "kernels/cuda/linear.h"
#include "tensor/cuda/cuda_buffer.h"
#include "tensor/cuda/cuda_stream.h"

namespace onepass {

using LinearRun = std::function<Status(const CudaLinearParams&, CUstream_st*)>;

// Input, output and weights of one layer in memory of its own, for any number of rows up to a largest one.
class LinearTimer {
 public:
  // `params` with the largest number of rows; addresses that are null or not do not matter, but for the weights: with
  // many rows they are those of `params`, if it has any. ResourceExhausted where the memory is not there.
  static StatusOr<LinearTimer> create(const CudaLinearParams& params, const GpuInfo& gpu);

  // Seconds of one call of each with `num_rows` rows, with few including a pause before it that is the same for all;
  // infinite for those that fail. Those that are clearly slower than others have been timed once. An error is that of
  // the first where all fail.
  StatusOr<std::vector<double>> time(int64_t num_rows, std::span<const LinearRun> runs);

 private:
  LinearTimer() = default;
  // One way, ready to be timed.
  struct Candidate {
    CudaGraph graph;
    CudaEvent before, after;
  };
  Status fill(const CudaLinearParams& params, const GpuInfo& gpu);
  Status run_calls(int64_t num_rows, const LinearRun& run) const;
  StatusOr<Candidate> make_candidate(int64_t num_rows, const LinearRun& run) const;
  Status empty_cache(int64_t num_rows) const;
  Status queue(int64_t num_rows, Candidate& candidate) const;

  CudaStream stream_;
  CudaBuffer x_, y_, bias_, norm_, normed_, products_, flush_;
  CudaBuffer weights_;
  CudaLinearParams params_;
  int copies_ = 1, calls_ = 1;  // of the weights, and of the layer in a graph, with few rows
};

}  // namespace onepass
