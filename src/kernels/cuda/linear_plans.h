// The plans of dense layers on a GPU, and the file that keeps them from one start to the next.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <string>

#include "base/status.h"
#include "kernels/cuda/hopper_linear_plan.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/stream_linear_plan.h"

namespace onepass {

// What a plan is for.
struct LinearShape {
  DType dtype = DType::kBF16, y_dtype = DType::kBF16;
  int64_t rows = 0, cols = 0, num_rows = 0, x_row_stride = 0, y_row_stride = 0;
  bool has_bias = false, accumulate = false, has_norm = false, gated = false;

  auto operator<=>(const LinearShape&) const = default;
};

LinearShape shape_of(const CudaLinearParams& params);

// Numbers of rows share plans: 1, 2, 4, 8, 16 and from there on two in each doubling. The next that is not below
// num_rows.
int64_t planned_num_rows(int64_t num_rows);

struct LinearPlan {
  enum class Kernel { kCublasLt, kStream, kHopper };
  Kernel kernel = Kernel::kCublasLt;
  std::array<uint64_t, 8> algorithm{};  // kCublasLt: a cublasLtMatmulAlgo_t
  StreamLinearPlan stream;              // kStream: of run_stream_linear
  HopperLinearPlan hopper;              // kHopper: of run_hopper_linear

  bool operator==(const LinearPlan&) const = default;
};

using LinearPlans = std::map<LinearShape, LinearPlan>;

// What plans hold for: measured elsewhere, they are of no use.
struct LinearMachine {
  std::string gpu;
  int driver_version = 0;
  uint64_t cublaslt_version = 0;
};

// The plans of `path`; none where the file is missing, not one of ours, of another version or for another machine.
LinearPlans read_linear_plans(const std::string& path, const LinearMachine& machine);
// Replaces the file as a whole.
Status write_linear_plans(const std::string& path, const LinearMachine& machine, const LinearPlans& plans);

}  // namespace onepass
