// onepass bench attention on a GPU: each kernel in a CUDA graph, beside the bandwidth of a plain copy.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "attention/cuda/flash_attention_cuda.h"
#include "cli/bench_attention.h"
#include "cli/bench_attention_cuda_problem.h"
#include "cli/bench_cuda_timing.h"
#include "tensor/cuda/cuda_status.h"
#include "tensor/cuda/cuda_stream.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

constexpr double kDefaultSeconds = 0.2;
constexpr double kGraphSeconds = 2e-3;  // at least, so that a graph's own start does not count
constexpr int kMaxRuns = 2048;          // of a graph

class Bench {
 public:
  Bench(const BenchAttentionOptions& options, DType dtype, GpuInfo gpu, CudaStream stream)
      : options_(options), dtype_(dtype), gpu_(std::move(gpu)), stream_(std::move(stream)) {}

  Status run();

 private:
  std::vector<const CudaAttentionKernel*> kernels_for(const AttentionParams& params) const;
  Status measure(const AttentionShape& shape, const CudaAttentionKernel& kernel, CudaBenchProblem& problem);
  StatusOr<double> seconds_of(const CudaAttentionKernel& kernel, const CudaBenchProblem& problem,
                              const CudaScratch& scratch);
  StatusOr<double> check_rows(const AttentionShape& shape, const CudaAttentionKernel& kernel,
                              const CudaBenchProblem& problem);

  const BenchAttentionOptions& options_;
  const DType dtype_;
  const GpuInfo gpu_;
  CudaStream stream_;
  double copy_bandwidth_ = 0.0;
  nlohmann::json results_ = nlohmann::json::array();
};

std::vector<const CudaAttentionKernel*> Bench::kernels_for(const AttentionParams& params) const {
  if (options_.kernel == "auto") {
    const auto chosen = choose_cuda_attention_kernel(params, gpu_);
    if (!chosen.ok()) return {};
    return {*chosen};
  }
  std::vector<const CudaAttentionKernel*> kernels;
  for (const CudaAttentionKernel* kernel : cuda_attention_kernels()) {
    const bool named = options_.kernel == kernel->name || (options_.kernel == "all" && kernel->name != "naive");
    if (named && kernel->supports(params, gpu_).ok()) kernels.push_back(kernel);
  }
  return kernels;
}

// A graph of many runs that go round the copies of the inputs; of one run, the time.
StatusOr<double> Bench::seconds_of(const CudaAttentionKernel& kernel, const CudaBenchProblem& problem,
                                   const CudaScratch& scratch) {
  const auto capture = [&](int runs) {
    return CudaGraph::capture(stream_, [&]() -> Status {
      for (int i = 0; i < runs; ++i) {
        const AttentionParams& params = problem.params(i % problem.copies());
        if (options_.with_plan) ONEPASS_RETURN_IF_ERROR(kernel.plan(params, gpu_, scratch, stream_.get()));
        ONEPASS_RETURN_IF_ERROR(kernel.run(params, gpu_, scratch, stream_.get()));
      }
      return ok_status();
    });
  };
  ONEPASS_RETURN_IF_ERROR(kernel.plan(problem.params(0), gpu_, scratch, stream_.get()));
  ONEPASS_ASSIGN_OR_RETURN(const CudaGraph once, capture(problem.copies()));
  ONEPASS_ASSIGN_OR_RETURN(const double first, seconds_on(stream_, 0.01, [&] { return once.launch(stream_); }));
  const double rounds =
      std::clamp(std::ceil(kGraphSeconds / first), 1.0, std::ceil(double{kMaxRuns} / problem.copies()));
  const int runs = static_cast<int>(rounds) * problem.copies();
  ONEPASS_ASSIGN_OR_RETURN(const CudaGraph graph, capture(runs));
  const double budget = options_.seconds > 0.0 ? options_.seconds : kDefaultSeconds;
  ONEPASS_ASSIGN_OR_RETURN(const double seconds, seconds_on(stream_, budget, [&] { return graph.launch(stream_); }));
  return seconds / runs;
}

// The largest difference from the naive kernel on rows of copy 0, relative to the largest output of those rows.
StatusOr<double> Bench::check_rows(const AttentionShape& shape, const CudaAttentionKernel& kernel,
                                   const CudaBenchProblem& problem) {
  constexpr int kParts = 8;
  const int rows = std::min(4, shape.seqlen_q);
  const int64_t row_size = int64_t{shape.num_heads} * shape.head_dim_v;
  const AttentionParams& whole = problem.params(0);
  ONEPASS_ASSIGN_OR_RETURN(const CudaAttentionKernel* naive, choose_cuda_attention_kernel(whole, gpu_, "naive"));
  std::mt19937_64 rng(3);
  double largest = 0.0, difference = 0.0;
  for (int i = 0; i < kParts; ++i) {
    const auto request = static_cast<int>(rng() % shape.batch);
    const auto first = static_cast<int>(rng() % (shape.seqlen_q - rows + 1));
    CudaBuffer lengths;
    ONEPASS_ASSIGN_OR_RETURN(const CudaBuffer out, CudaBuffer::allocate(rows * row_size * sizeof(float)));
    ONEPASS_ASSIGN_OR_RETURN(AttentionParams part, problem.part(0, request, first, rows, lengths));
    part.out = out.data();
    part.out_dtype = DType::kF32;
    ONEPASS_RETURN_IF_ERROR(naive->run(part, gpu_, {}, stream_.get()));
    ONEPASS_RETURN_IF_ERROR(stream_.synchronize());
    std::vector<float> expected(rows * row_size), found(rows * row_size);
    ONEPASS_RETURN_IF_ERROR(out.download(std::as_writable_bytes(std::span(expected))));
    std::vector<std::byte> bytes(rows * row_size * size_of(dtype_));
    const int64_t first_row = int64_t{request} * shape.seqlen_q + first;
    ONEPASS_RETURN_IF_ERROR(cuda_status(
        cudaMemcpy(bytes.data(), static_cast<const std::byte*>(whole.out) + first_row * row_size * size_of(dtype_),
                   bytes.size(), cudaMemcpyDeviceToHost),
        "copy from the GPU"));
    convert_to_float(bytes.data(), dtype_, rows * row_size, found.data());
    for (size_t n = 0; n < found.size(); ++n) {
      largest = std::max(largest, std::abs(double{expected[n]}));
      const double error = std::abs(double{found[n]} - expected[n]);
      if (!(error <= difference) && !std::isnan(difference)) difference = error;  // NaN too, and it stays
    }
  }
  const double relative = difference / largest;
  const double allowed = dtype_ == DType::kBF16 ? 1.0 / 64 : 1.0 / 512;
  if (relative <= allowed) return relative;
  return absl::InternalError(str_cat("bench attention: ", shape.name, ": kernel ", kernel.name, " is ", relative,
                                     " (relative) from the naive one, expected at most ", allowed));
}

Status Bench::measure(const AttentionShape& shape, const CudaAttentionKernel& kernel, CudaBenchProblem& problem) {
  if (options_.check) ONEPASS_RETURN_IF_ERROR(problem.poison_outputs());
  const int64_t bytes = kernel.scratch_bytes(problem.params(0), gpu_);
  ONEPASS_ASSIGN_OR_RETURN(const CudaBuffer memory, CudaBuffer::allocate_zeroed(bytes));
  const Status status = [&]() -> Status {
    ONEPASS_ASSIGN_OR_RETURN(const double seconds,
                             seconds_of(kernel, problem, {.data = memory.data(), .bytes = bytes}));
    std::optional<double> difference;
    if (options_.check) {
      ONEPASS_ASSIGN_OR_RETURN(difference, check_rows(shape, kernel, problem));
    }
    const double tflops = attention_flops(shape) / seconds * 1e-12;
    const double bandwidth = attention_kv_bytes(shape, dtype_) / seconds;
    if (!options_.json) {
      std::printf("%-36s %-16s %10.2f %9.1f %9.1f %8.1f%%", shape.name.c_str(), std::string(kernel.name).c_str(),
                  seconds * 1e6, tflops, bandwidth * 1e-9, 100 * bandwidth / copy_bandwidth_);
      if (difference.has_value()) std::printf(" %10.1e", *difference);
      std::printf("\n");
      std::fflush(stdout);
    }
    nlohmann::json result = {{"name", shape.name},
                             {"workload", shape.workload},
                             {"kernel", kernel.name},
                             {"batch", shape.batch},
                             {"seqlen_q", shape.seqlen_q},
                             {"seqlen_k", shape.seqlen_k},
                             {"num_heads", shape.num_heads},
                             {"num_heads_kv", shape.num_heads_kv},
                             {"head_dim", shape.head_dim},
                             {"head_dim_v", shape.head_dim_v},
                             {"page_size", shape.page_size},
                             {"causal", shape.causal},
                             {"copies", problem.copies()},
                             {"us", seconds * 1e6},
                             {"flop", attention_flops(shape)},
                             {"kv_bytes", attention_kv_bytes(shape, dtype_)},
                             {"tflop_per_s", tflops},
                             {"kv_gb_per_s", bandwidth * 1e-9},
                             {"of_copy", bandwidth / copy_bandwidth_}};
    if (difference.has_value()) result["difference"] = *difference;
    results_.push_back(std::move(result));
    return ok_status();
  }();
  stream_.synchronize().IgnoreError();  // the scratch goes when nothing uses it any more
  return status;
}

Status Bench::run() {
  ONEPASS_ASSIGN_OR_RETURN(copy_bandwidth_, measure_copy_bandwidth(stream_));
  ONEPASS_ASSIGN_OR_RETURN(const CudaBuffer block, random_block(dtype_));
  if (!options_.json) {
    std::printf("%s, %s; a copy reads and writes %.0f GB/s; inputs not in the L2 cache; %s\n", gpu_.name.c_str(),
                std::string(to_string(dtype_)).c_str(), copy_bandwidth_ * 1e-9,
                options_.with_plan ? "plan included" : "one plan before all");
    std::printf("%-36s %-16s %10s %9s %9s %9s%s\n", "", "kernel", "us", "TFLOP/s", "KV GB/s", "of copy",
                options_.check ? "  from naive" : "");
  }
  for (const AttentionShape& shape : bench_attention_shapes(options_)) {
    // What the L2 cache holds of the last round must be gone before its turn comes again.
    ONEPASS_ASSIGN_OR_RETURN(CudaBenchProblem problem,
                             CudaBenchProblem::make(shape, dtype_, 4 * gpu_.l2_cache_bytes, block));
    const auto kernels = kernels_for(problem.params(0));
    for (const CudaAttentionKernel* kernel : kernels) {
      ONEPASS_RETURN_IF_ERROR(measure(shape, *kernel, problem));
    }
    if (kernels.empty() && !options_.json) std::printf("%-36s no kernel\n", shape.name.c_str());
  }
  if (options_.json) {
    const nlohmann::json output = {{"device", gpu_.name},
                                   {"dtype", to_string(dtype_)},
                                   {"copy_gb_per_s", copy_bandwidth_ * 1e-9},
                                   {"with_plan", options_.with_plan},
                                   {"shapes", results_}};
    std::printf("%s\n", output.dump(2).c_str());
  }
  if (results_.empty()) return unimplemented("bench attention: no kernel for these shapes in ", to_string(dtype_));
  return ok_status();
}

}  // namespace

Status bench_attention_cuda(const BenchAttentionOptions& options) {
  const CudaInfo cuda = query_cuda();
  if (!cuda.problem.empty()) return not_found("bench attention: device cuda: ", cuda.problem);
  const GpuInfo& gpu = cuda.gpus.front();
  if (!gpu.usable) return unimplemented("bench attention: device cuda: this binary has no code for ", gpu.name);
  ONEPASS_ASSIGN_OR_RETURN(const DType dtype, parse_float_dtype(options.dtype));
  ONEPASS_ASSIGN_OR_RETURN(CudaStream stream, CudaStream::create());
  return Bench(options, dtype, gpu, std::move(stream)).run();
}

}  // namespace onepass
