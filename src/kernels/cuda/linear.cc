#include "kernels/cuda/linear.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "base/log.h"
#include "kernels/cuda/cublaslt_linear.h"
#include "kernels/cuda/hopper_linear.h"
#include "kernels/cuda/linear_plans.h"
#include "kernels/cuda/linear_timing.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/silu_and_mul.h"
#include "kernels/cuda/stream_linear.h"
#include "tensor/cuda/cuda_status.h"
#include "tensor/cuda/gpu_context.h"

namespace onepass {
namespace {

// Of cuBLASLt, so many are timed: its first guess is right in most cases, and within 10%. From 65 to 1,024 rows the
// best of four is within 1.6% of the best of eight; each that is tried must be loaded, 1 to 2 ms.
constexpr int kAlgorithms = 8;
constexpr int kFewAlgorithms = 4;
int num_algorithms(int64_t num_rows) { return num_rows > 64 && num_rows <= 1024 ? kFewAlgorithms : kAlgorithms; }

Status check(const CudaLinearParams& p) {
  const auto error = [](const char* what, const auto&... parts) {
    return invalid_argument("linear: ", what, parts...);
  };
  if (p.dtype != DType::kF16 && p.dtype != DType::kBF16) {
    return error("dtype: expected float16 or bfloat16, found ", to_string(p.dtype));
  }
  if (p.y_dtype != DType::kF32 && p.y_dtype != p.dtype) {
    return error("y_dtype: expected float32 or ", to_string(p.dtype), ", found ", to_string(p.y_dtype));
  }
  if (p.rows <= 0 || p.rows > 0x7fffffff) return error("rows: expected 1 to 2147483647, found ", p.rows);
  // So that each row of the weights begins at a multiple of 16 bytes.
  if (p.cols <= 0 || p.cols % 8 != 0 || p.cols > 0x7fffffff) {
    return error("cols: expected a multiple of 8 from 8 to 2147483640, found ", p.cols);
  }
  if (p.num_rows < 0 || p.num_rows > 0x7fffffff) return error("num_rows: expected 0 to 2147483647, found ", p.num_rows);
  if (p.gated && (p.rows % 16 != 0 || p.accumulate || p.y_dtype != p.dtype)) {
    return error("gated: expected a multiple of 16 rows, nothing to add to and y_dtype ", to_string(p.dtype),
                 ", found ", p.rows, ", accumulate ", p.accumulate, " and ", to_string(p.y_dtype));
  }
  if (p.x_row_stride < p.cols || p.x_row_stride % 8 != 0) {
    return error("x_row_stride: expected a multiple of 8 from cols = ", p.cols, " on, found ", p.x_row_stride);
  }
  const int64_t y_piece = p.y_dtype == DType::kF32 ? 4 : 8;
  if (p.y_row_stride < p.y_cols() || p.y_row_stride % y_piece != 0) {
    return error("y_row_stride: expected a multiple of ", y_piece, " from ", p.gated ? "rows / 2" : "rows", " = ",
                 p.y_cols(), " on, found ", p.y_row_stride);
  }
  return ok_status();
}

Status check_addresses(const CudaLinearParams& p) {
  const auto is_good = [](const void* address) {
    return address != nullptr && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  };
  for (const void* address : {p.x, p.weight, static_cast<const void*>(p.y)}) {
    if (!is_good(address)) {
      return invalid_argument("linear: x, weight and y: expected addresses that are multiples of 16, found ",
                              reinterpret_cast<uintptr_t>(address));
    }
  }
  if (p.norm != nullptr && (!is_good(p.norm) || !is_good(p.normed))) {
    return invalid_argument("linear: norm and normed: expected addresses that are multiples of 16, found another");
  }
  if (p.gated && !is_good(p.products)) {
    return invalid_argument("linear: products: expected an address that is a multiple of 16, found ",
                            reinterpret_cast<uintptr_t>(p.products));
  }
  return ok_status();
}

Status run_norm(const CudaLinearParams& p, CUstream_st* stream) {
  return run_rms_norm_cuda({.x = p.x,
                            .x_dtype = DType::kF32,
                            .x_row_stride = p.x_row_stride,
                            .weight = p.norm,
                            .eps = p.norm_eps,
                            .out = p.normed,
                            .out_dtype = p.dtype,
                            .out_row_stride = p.cols,
                            .rows = p.num_rows,
                            .cols = p.cols},
                           stream);
}

Status run_activation(const CudaLinearParams& p, CUstream_st* stream) {
  return run_silu_and_mul_cuda({.dtype = p.dtype,
                                .gate_up = p.products,
                                .gate_up_row_stride = p.rows,
                                .out = p.y,
                                .out_row_stride = p.y_row_stride,
                                .rows = p.num_rows,
                                .cols = p.rows / 2},
                               stream);
}

// The product alone: of what the norm leaves in `normed`, into `products` where the activation finds it.
CudaLinearParams without_norm(CudaLinearParams p) {
  if (p.norm == nullptr) return p;
  p.x = p.normed, p.x_row_stride = p.cols, p.norm = nullptr;
  return p;
}
CudaLinearParams without_activation(CudaLinearParams p) {
  if (!p.gated) return p;
  p.y = p.products, p.y_row_stride = p.rows, p.gated = false;
  return p;
}
CudaLinearParams product_alone(const CudaLinearParams& p) { return without_activation(without_norm(p)); }

}  // namespace

class CudaLinear::Impl {
 public:
  Impl(const GpuInfo& gpu, const Options& options) : gpu_(gpu), options_(options) {}

  Status open();
  Status prepare(const CudaLinearParams& params);
  Status prepare_up_to(const CudaLinearParams& params);
  Status run(const CudaLinearParams& params, CUstream_st* stream);
  std::string describe(const CudaLinearParams& params) const;

 private:
  // Plans the shape for each of `nums_of_rows`, as planned_num_rows() gives them, ascending.
  Status plan(const CudaLinearParams& params, std::vector<int64_t> nums_of_rows);
  std::vector<LinearPlan> candidates(const CudaLinearParams& params) const;
  // `timer`: null where there is no memory to try them.
  StatusOr<LinearPlan> fastest(const CudaLinearParams& params, const std::vector<LinearPlan>& plans,
                               LinearTimer* timer);
  Status run(const LinearPlan& plan, const CudaLinearParams& params, CUstream_st* stream);
  Status run_cublaslt(const LinearPlan& plan, const CudaLinearParams& params, CUstream_st* stream);
  Status make_bias(const CudaLinearParams& params);

  const GpuInfo gpu_;
  const Options options_;
  std::unique_ptr<CublasLtLinear> cublaslt_;  // null: batch-invariant
  LinearMachine machine_;
  LinearPlans plans_;                     // num_rows as planned_num_rows() gives it
  LinearPlans exact_;                     // where that one's algorithm does not do the number itself
  std::map<int64_t, CudaBuffer> biases_;  // by rows: a bias in y's dtype, as the library wants it
  CudaBuffer zero_;                       // an int32
  bool is_kept_ = true;                   // plans are written to the file
};

Status CudaLinear::Impl::open() {
  if (options_.batch_invariant) return ok_status();
  ONEPASS_ASSIGN_OR_RETURN(cublaslt_, CublasLtLinear::create());
  ONEPASS_ASSIGN_OR_RETURN(zero_, CudaBuffer::allocate_zeroed(sizeof(int32_t)));
  machine_ = {.gpu = gpu_.name, .cublaslt_version = cublaslt_->version()};
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaDriverGetVersion(&machine_.driver_version), "cudaDriverGetVersion"));
  if (!options_.plan_file.empty()) plans_ = read_linear_plans(options_.plan_file, machine_);
  return ok_status();
}

Status CudaLinear::Impl::make_bias(const CudaLinearParams& p) {
  if (options_.batch_invariant || p.bias == nullptr || p.y_dtype == DType::kF32 || biases_.contains(p.rows)) {
    return ok_status();
  }
  ONEPASS_ASSIGN_OR_RETURN(biases_[p.rows], CudaBuffer::allocate(p.rows * size_of(p.y_dtype)));
  return ok_status();
}

Status CudaLinear::Impl::prepare(const CudaLinearParams& params) {
  ONEPASS_RETURN_IF_ERROR(check(params));
  if (params.num_rows == 0 || options_.batch_invariant) return ok_status();
  return plan(params, {planned_num_rows(params.num_rows)});
}

Status CudaLinear::Impl::prepare_up_to(const CudaLinearParams& params) {
  ONEPASS_RETURN_IF_ERROR(check(params));
  if (params.num_rows == 0 || options_.batch_invariant) return ok_status();
  std::vector<int64_t> nums_of_rows{1};
  while (nums_of_rows.back() < params.num_rows) {
    nums_of_rows.push_back(planned_num_rows(nums_of_rows.back() + 1));
  }
  return plan(params, std::move(nums_of_rows));
}

std::vector<LinearPlan> CudaLinear::Impl::candidates(const CudaLinearParams& params) const {
  std::vector<LinearPlan> plans;
  for (const StreamLinearPlan& plan : stream_linear_plans(params.cols, params.num_rows, params.norm != nullptr, gpu_)) {
    plans.push_back({.kernel = LinearPlan::Kernel::kStream, .stream = plan});
  }
  for (const HopperLinearPlan& plan : hopper_linear_plans(params.y_cols(), params.gated, params.num_rows, gpu_)) {
    plans.push_back({.kernel = LinearPlan::Kernel::kHopper, .hopper = plan});
  }
  // That the library has nothing for a shape is an error only where there is nothing else.
  const auto algorithms = cublaslt_->algorithms(product_alone(params), num_algorithms(params.num_rows));
  if (!algorithms.ok()) return plans;
  for (const cublasLtMatmulAlgo_t& algorithm : *algorithms) {
    LinearPlan& plan = plans.emplace_back();
    static_assert(sizeof(plan.algorithm) == sizeof(algorithm.data));
    std::memcpy(plan.algorithm.data(), algorithm.data, sizeof(algorithm.data));
  }
  return plans;
}

StatusOr<LinearPlan> CudaLinear::Impl::fastest(const CudaLinearParams& params, const std::vector<LinearPlan>& plans,
                                               LinearTimer* timer) {
  if (plans.empty()) {
    return unimplemented("linear: cuBLASLt has no algorithm for ", params.num_rows, " x ", params.cols, " by ",
                         params.rows, " in ", to_string(params.dtype));
  }
  if (timer == nullptr) return plans.front();
  std::vector<LinearRun> runs;
  runs.reserve(plans.size());
  for (const LinearPlan& plan : plans) {
    runs.emplace_back([this, &plan](const CudaLinearParams& p, CUstream_st* stream) { return run(plan, p, stream); });
  }
  ONEPASS_ASSIGN_OR_RETURN(const std::vector<double> seconds, timer->time(params.num_rows, runs));
  return plans[std::min_element(seconds.begin(), seconds.end()) - seconds.begin()];
}

Status CudaLinear::Impl::plan(const CudaLinearParams& params, std::vector<int64_t> nums_of_rows) {
  ONEPASS_RETURN_IF_ERROR(make_bias(params));
  CudaLinearParams planned = params;
  std::erase_if(nums_of_rows, [&](int64_t num_rows) {
    planned.num_rows = num_rows;
    return plans_.contains(shape_of(planned));
  });
  if (nums_of_rows.empty()) return ok_status();
  // Where there is no memory to try the largest, the others are.
  StatusOr<LinearTimer> timer;
  size_t num_timed = nums_of_rows.size();
  for (; num_timed > 0; --num_timed) {
    planned.num_rows = nums_of_rows[num_timed - 1];
    timer = LinearTimer::create(planned, gpu_);
    if (!absl::IsResourceExhausted(timer.status())) break;
  }
  if (num_timed < nums_of_rows.size()) {
    log_debug(str_cat("linear: no memory to time plans from ", nums_of_rows[num_timed], " rows on"));
    is_kept_ = false;  // a guess is for this process alone
  }
  if (num_timed > 0) ONEPASS_RETURN_IF_ERROR(timer.status());
  for (size_t i = 0; i < nums_of_rows.size(); ++i) {
    planned.num_rows = nums_of_rows[i];
    ONEPASS_ASSIGN_OR_RETURN(plans_[shape_of(planned)],
                             fastest(planned, candidates(planned), i < num_timed ? &*timer : nullptr));
  }
  if (options_.plan_file.empty() || !is_kept_) return ok_status();
  if (const Status status = write_linear_plans(options_.plan_file, machine_, plans_); !status.ok()) {
    log_warning(std::string(status.message()));
    is_kept_ = false;  // said once
  }
  return ok_status();
}

Status CudaLinear::Impl::run_cublaslt(const LinearPlan& plan, const CudaLinearParams& p, CUstream_st* stream) {
  const void* bias = p.bias;
  if (p.bias != nullptr && p.y_dtype != DType::kF32) {
    const CudaBuffer& converted = biases_.at(p.rows);
    ONEPASS_RETURN_IF_ERROR(run_gather_rows_cuda({.table = p.bias,
                                                  .table_dtype = DType::kF32,
                                                  .table_rows = 1,
                                                  .index = zero_.as<int32_t>(),
                                                  .out = converted.data(),
                                                  .out_dtype = p.y_dtype,
                                                  .rows = 1,
                                                  .cols = p.rows},
                                                 stream));
    bias = converted.data();
  }
  cublasLtMatmulAlgo_t algorithm;
  std::memcpy(algorithm.data, plan.algorithm.data(), sizeof(algorithm.data));
  return cublaslt_->run(p, bias, algorithm, stream);
}

Status CudaLinear::Impl::run(const LinearPlan& plan, const CudaLinearParams& params, CUstream_st* stream) {
  const bool norm_inside = plan.kernel == LinearPlan::Kernel::kStream && plan.stream.norm_inside;
  const bool has_norm_apart = params.norm != nullptr && !norm_inside;
  if (has_norm_apart) ONEPASS_RETURN_IF_ERROR(run_norm(params, stream));
  const CudaLinearParams normed = has_norm_apart ? without_norm(params) : params;
  if (plan.kernel == LinearPlan::Kernel::kStream) return run_stream_linear(normed, plan.stream, gpu_, stream);
  if (plan.kernel == LinearPlan::Kernel::kHopper) return run_hopper_linear(normed, plan.hopper, gpu_, stream);
  ONEPASS_RETURN_IF_ERROR(run_cublaslt(plan, without_activation(normed), stream));
  return params.gated ? run_activation(params, stream) : ok_status();
}

Status CudaLinear::Impl::run(const CudaLinearParams& params, CUstream_st* stream) {
  ONEPASS_RETURN_IF_ERROR(check(params));
  if (params.num_rows == 0) return ok_status();
  ONEPASS_RETURN_IF_ERROR(check_addresses(params));
  if (options_.batch_invariant) {
    // The norm's bits are the same within the product and apart.
    ONEPASS_ASSIGN_OR_RETURN(const StreamLinearPlan plan,
                             batch_invariant_plan(params.cols, params.num_rows, params.norm != nullptr, gpu_));
    return run({.kernel = LinearPlan::Kernel::kStream, .stream = plan}, params, stream);
  }
  if (!exact_.empty()) {
    if (const auto it = exact_.find(shape_of(params)); it != exact_.end()) return run(it->second, params, stream);
  }
  LinearShape planned = shape_of(params);
  planned.num_rows = planned_num_rows(params.num_rows);
  auto it = plans_.find(planned);
  if (it == plans_.end() ||
      (params.bias != nullptr && params.y_dtype != DType::kF32 && !biases_.contains(params.rows))) {
    ONEPASS_ASSIGN_OR_RETURN(const uint64_t capture, capture_id(stream));
    if (capture != 0) {
      return absl::FailedPreconditionError(str_cat("linear: ", params.num_rows, " x ", params.cols, " by ", params.rows,
                                                   ": expected to be prepared before a graph is captured"));
    }
    ONEPASS_RETURN_IF_ERROR(prepare(params));
    it = plans_.find(planned);
  }
  Status status = run(it->second, params, stream);
  if (!absl::IsUnimplemented(status) || params.num_rows == planned.num_rows) return status;
  ONEPASS_ASSIGN_OR_RETURN(const auto algorithms, cublaslt_->algorithms(product_alone(params), 1));
  if (algorithms.empty()) return status;
  LinearPlan& plan = exact_[shape_of(params)];
  std::memcpy(plan.algorithm.data(), algorithms[0].data, sizeof(algorithms[0].data));
  return run(plan, params, stream);
}

std::string CudaLinear::Impl::describe(const CudaLinearParams& params) const {
  LinearShape shape = shape_of(params);
  shape.num_rows = planned_num_rows(params.num_rows);
  if (const auto it = plans_.find(shape); it != plans_.end()) {
    switch (it->second.kernel) {
      case LinearPlan::Kernel::kCublasLt:
        return "cublaslt";
      case LinearPlan::Kernel::kStream:
        return to_string(it->second.stream);
      case LinearPlan::Kernel::kHopper:
        return to_string(it->second.hopper);
    }
  }
  if (!options_.batch_invariant) return "none";
  const auto plan = batch_invariant_plan(params.cols, params.num_rows, params.norm != nullptr, gpu_);
  return plan.ok() ? to_string(*plan) : "none";
}

CudaLinear::CudaLinear(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaLinear::~CudaLinear() = default;

StatusOr<std::unique_ptr<CudaLinear>> CudaLinear::create(const GpuInfo& gpu, const Options& options) {
  auto impl = std::make_unique<Impl>(gpu, options);
  ONEPASS_RETURN_IF_ERROR(impl->open());
  return std::unique_ptr<CudaLinear>(new CudaLinear(std::move(impl)));
}

Status CudaLinear::prepare(const CudaLinearParams& params) { return impl_->prepare(params); }
Status CudaLinear::prepare_up_to(const CudaLinearParams& params) { return impl_->prepare_up_to(params); }
Status CudaLinear::run(const CudaLinearParams& params, CUstream_st* stream) { return impl_->run(params, stream); }
std::string CudaLinear::describe(const CudaLinearParams& params) const { return impl_->describe(params); }

}  // namespace onepass
