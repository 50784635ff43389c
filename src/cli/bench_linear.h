// onepass bench linear, in parts: the command line and the shapes, and the measurement on a GPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace onepass {

struct BenchLinearOptions {
  std::string device = "cuda";
  std::string model_dir;       // its shapes
  int64_t rows = 0, cols = 0;  // both: this shape
  std::vector<int64_t> num_rows = {1};
  std::string dtype = "bfloat16";
  bool all_plans = false;
  bool batch_invariant = false;
  double seconds = 0.1;  // for each measurement
};

// A dense layer: [rows, cols].
struct LinearLayerShape {
  std::string name;
  int64_t rows = 0, cols = 0;
  bool float_output = false;  // logits
};

// The shapes that the options give: one, a model's, or those of Llama-3.1-8B and Qwen3-0.6B.
StatusOr<std::vector<LinearLayerShape>> bench_linear_shapes(const BenchLinearOptions& options);

// Measures and prints.
Status bench_linear_cuda(const BenchLinearOptions& options);

}  // namespace onepass
