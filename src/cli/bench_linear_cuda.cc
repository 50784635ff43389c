// onepass bench linear on a GPU: each layer in a CUDA graph, its weights not in the L2 cache.
#include "cli/bench_linear.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "absl/functional/function_ref.h"
#include "cli/bench_cuda_timing.h"
#include "kernels/cuda/cublaslt_linear.h"
#include "kernels/cuda/fill_random.h"
#include "kernels/cuda/hopper_linear.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/stream_linear.h"
#include "tensor/cuda/cuda_stream.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

constexpr double kGraphSeconds = 2e-3;  // at least, so that a graph's own start does not count
constexpr int kMaxRuns = 2048;          // of a graph

using Run = absl::FunctionRef<Status(const CudaLinearParams&)>;

class Bench {
 public:
  Bench(const BenchLinearOptions& options, DType dtype, GpuInfo gpu, CudaStream stream)
      : options_(options), dtype_(dtype), gpu_(std::move(gpu)), stream_(std::move(stream)) {}

  Status run();

 private:
  // The shape in memory, with so many copies of the weights that none is in the L2 cache when its turn comes.
  struct Layer {
    std::vector<CudaBuffer> weights;
    CudaBuffer x, y;
    std::vector<CudaLinearParams> params;
  };
  StatusOr<Layer> make(const LinearLayerShape& shape, int64_t num_rows);
  Status measure(const LinearLayerShape& shape, const Layer& layer, const std::string& kernel, Run run);
  Status measure_all(const LinearLayerShape& shape, const Layer& layer);

  const BenchLinearOptions& options_;
  const DType dtype_;
  const GpuInfo gpu_;
  CudaStream stream_;
  double copy_bandwidth_ = 0.0;
};

StatusOr<Bench::Layer> Bench::make(const LinearLayerShape& shape, int64_t num_rows) {
  Layer layer;
  const auto fill = [&](CudaBuffer& buffer, DType dtype, int64_t elements, uint64_t seed) -> Status {
    ONEPASS_ASSIGN_OR_RETURN(buffer, CudaBuffer::allocate(elements * size_of(dtype)));
    return run_fill_random_cuda({.data = buffer.data(), .dtype = dtype, .elements = elements, .seed = seed},
                                stream_.get());
  };
  const DType y_dtype = shape.float_output ? DType::kF32 : dtype_;
  const int64_t elements = shape.rows * shape.cols, y_stride = (shape.rows + 7) / 8 * 8;
  const int64_t bytes = elements * static_cast<int64_t>(size_of(dtype_));
  const int64_t copies = std::max<int64_t>(1, (4 * gpu_.l2_cache_bytes + bytes - 1) / bytes);
  ONEPASS_RETURN_IF_ERROR(fill(layer.x, dtype_, num_rows * shape.cols, 1));
  ONEPASS_RETURN_IF_ERROR(fill(layer.y, y_dtype, num_rows * y_stride, 2));
  for (int64_t i = 0; i < copies; ++i) {
    ONEPASS_RETURN_IF_ERROR(fill(layer.weights.emplace_back(), dtype_, elements, 3 + i));
    layer.params.push_back({.dtype = dtype_,
                            .x = layer.x.data(),
                            .x_row_stride = shape.cols,
                            .num_rows = num_rows,
                            .weight = layer.weights.back().data(),
                            .rows = shape.rows,
                            .cols = shape.cols,
                            .y = layer.y.data(),
                            .y_dtype = y_dtype,
                            .y_row_stride = y_stride});
  }
  ONEPASS_RETURN_IF_ERROR(stream_.synchronize());
  return layer;
}

Status Bench::measure(const LinearLayerShape& shape, const Layer& layer, const std::string& kernel, Run run) {
  const auto copies = static_cast<int>(layer.params.size());
  const auto capture = [&](int runs) {
    return CudaGraph::capture(stream_, [&]() -> Status {
      for (int i = 0; i < runs; ++i) ONEPASS_RETURN_IF_ERROR(run(layer.params[i % copies]));
      return ok_status();
    });
  };
  ONEPASS_ASSIGN_OR_RETURN(const CudaGraph once, capture(copies));
  ONEPASS_ASSIGN_OR_RETURN(const double first, seconds_on(stream_, 0.01, [&] { return once.launch(stream_); }));
  const double rounds = std::clamp(std::ceil(kGraphSeconds / first), 1.0, std::ceil(double{kMaxRuns} / copies));
  const int runs = static_cast<int>(rounds) * copies;
  ONEPASS_ASSIGN_OR_RETURN(const CudaGraph graph, capture(runs));
  ONEPASS_ASSIGN_OR_RETURN(const double all,
                           seconds_on(stream_, options_.seconds, [&] { return graph.launch(stream_); }));
  const double seconds = all / runs, elements = static_cast<double>(shape.rows) * static_cast<double>(shape.cols);
  const auto num_rows = static_cast<double>(layer.params[0].num_rows);
  const double bandwidth = elements * static_cast<double>(size_of(dtype_)) / seconds;
  std::printf("%-20s %7lld %6lld %6.0f %-18s %9.2f %9.1f %7.1f%% %9.2f\n", shape.name.c_str(),
              static_cast<long long>(shape.rows), static_cast<long long>(shape.cols), num_rows, kernel.c_str(),
              seconds * 1e6, bandwidth * 1e-9, 100 * bandwidth / copy_bandwidth_,
              2 * elements * num_rows / seconds * 1e-12);
  std::fflush(stdout);
  return ok_status();
}

Status Bench::measure_all(const LinearLayerShape& shape, const Layer& layer) {
  const CudaLinearParams& params = layer.params[0];
  for (const StreamLinearPlan& plan : stream_linear_plans(shape.cols, params.num_rows, params.norm != nullptr, gpu_)) {
    ONEPASS_RETURN_IF_ERROR(measure(shape, layer, to_string(plan), [&](const CudaLinearParams& p) {
      return run_stream_linear(p, plan, gpu_, stream_.get());
    }));
  }
  for (const HopperLinearPlan& plan : hopper_linear_plans(shape.rows, /*gated=*/false, params.num_rows, gpu_)) {
    ONEPASS_RETURN_IF_ERROR(measure(shape, layer, to_string(plan), [&](const CudaLinearParams& p) {
      return run_hopper_linear(p, plan, gpu_, stream_.get());
    }));
  }
  ONEPASS_ASSIGN_OR_RETURN(const auto cublaslt, CublasLtLinear::create());
  ONEPASS_ASSIGN_OR_RETURN(const auto algorithms, cublaslt->algorithms(params, 8));
  for (size_t i = 0; i < algorithms.size(); ++i) {
    ONEPASS_RETURN_IF_ERROR(measure(shape, layer, str_cat("cublaslt-", i), [&](const CudaLinearParams& p) {
      return cublaslt->run(p, nullptr, algorithms[i], stream_.get());
    }));
  }
  return ok_status();
}

Status Bench::run() {
  ONEPASS_ASSIGN_OR_RETURN(const std::vector<LinearLayerShape> shapes, bench_linear_shapes(options_));
  ONEPASS_ASSIGN_OR_RETURN(const auto linear, CudaLinear::create(gpu_, {.batch_invariant = options_.batch_invariant}));
  ONEPASS_ASSIGN_OR_RETURN(copy_bandwidth_, measure_copy_bandwidth(stream_));
  std::printf("%s, %s; a copy reads and writes %.0f GB/s; weights not in the L2 cache\n", gpu_.name.c_str(),
              std::string(to_string(dtype_)).c_str(), copy_bandwidth_ * 1e-9);
  std::printf("%-20s %7s %6s %6s %-18s %9s %9s %8s %9s\n", "", "rows", "cols", "input", "kernel", "us", "GB/s",
              "of copy", "TFLOP/s");
  for (const LinearLayerShape& shape : shapes) {
    for (const int64_t num_rows : options_.num_rows) {
      ONEPASS_ASSIGN_OR_RETURN(const Layer layer, make(shape, num_rows));
      if (options_.all_plans) ONEPASS_RETURN_IF_ERROR(measure_all(shape, layer));
      ONEPASS_RETURN_IF_ERROR(linear->prepare(layer.params[0]));
      const std::string kernel = linear->describe(layer.params[0]);
      ONEPASS_RETURN_IF_ERROR(measure(shape, layer, options_.all_plans ? str_cat("= ", kernel) : kernel,
                                      [&](const CudaLinearParams& p) { return linear->run(p, stream_.get()); }));
    }
  }
  return ok_status();
}

}  // namespace

Status bench_linear_cuda(const BenchLinearOptions& options) {
  const CudaInfo cuda = query_cuda();
  if (!cuda.problem.empty()) return not_found("bench linear: device cuda: ", cuda.problem);
  const GpuInfo& gpu = cuda.gpus.front();
  if (!gpu.usable) return unimplemented("bench linear: device cuda: this binary has no code for ", gpu.name);
  ONEPASS_ASSIGN_OR_RETURN(const DType dtype, parse_float_dtype(options.dtype));
  ONEPASS_ASSIGN_OR_RETURN(CudaStream stream, CudaStream::create());
  return Bench(options, dtype, gpu, std::move(stream)).run();
}

}  // namespace onepass
