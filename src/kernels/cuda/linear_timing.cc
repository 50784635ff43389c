#include "kernels/cuda/linear_timing.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels/cuda/fill_random.h"
#include "kernels/cuda/pause.h"
#include "tensor/cuda/cuda_buffer.h"
#include "tensor/cuda/cuda_status.h"
#include "tensor/cuda/cuda_stream.h"

namespace onepass {
namespace {

constexpr int kRounds = 5;
constexpr int kFewRows = 64;  // up to which a layer's time is that of its weights' way from memory
constexpr int kRuns = 8;      // of a graph with so few rows, at least
constexpr int kMaxCopies = 32;
// Before each call with few rows, some 2 us: in a decoder small kernels stand between the products, in which a kernel
// that begins early has its first weights brought. One after the other without them, memory alone would decide.
constexpr int64_t kPauseCycles = 3500;

struct Layers {
  CudaBuffer x, y, bias, norm, normed, products, flush;
  std::vector<CudaBuffer> weights;
  std::vector<CudaLinearParams> params;
};

StatusOr<Layers> make_layers(const CudaLinearParams& p, const GpuInfo& gpu, const CudaStream& stream) {
  Layers layers;
  uint64_t seed = 0;
  const auto fill = [&](CudaBuffer& buffer, DType dtype, int64_t elements) -> Status {
    StatusOr<CudaBuffer> memory = CudaBuffer::allocate(elements * size_of(dtype));
    if (!memory.ok()) return resource_exhausted("linear: plans are not timed: ", memory.status().message());
    buffer = std::move(*memory);
    return run_fill_random_cuda({.data = buffer.data(), .dtype = dtype, .elements = elements, .seed = ++seed},
                                stream.get());
  };
  CudaLinearParams params = p;
  ONEPASS_RETURN_IF_ERROR(fill(layers.x, p.norm != nullptr ? DType::kF32 : p.dtype, p.num_rows * p.x_row_stride));
  ONEPASS_RETURN_IF_ERROR(fill(layers.y, p.y_dtype, p.num_rows * p.y_row_stride));
  params.x = layers.x.data(), params.y = layers.y.data();
  if (p.bias != nullptr) {
    ONEPASS_RETURN_IF_ERROR(fill(layers.bias, DType::kF32, p.rows));
    params.bias = layers.bias.as<float>();
  }
  if (p.norm != nullptr) {
    ONEPASS_RETURN_IF_ERROR(fill(layers.norm, DType::kF32, p.cols));
    ONEPASS_RETURN_IF_ERROR(fill(layers.normed, p.dtype, p.num_rows * p.cols));
    params.norm = layers.norm.as<float>(), params.normed = layers.normed.data();
  }
  if (p.gated) {
    ONEPASS_RETURN_IF_ERROR(fill(layers.products, p.dtype, p.num_rows * p.rows));
    params.products = layers.products.data();
  }
  StatusOr<CudaBuffer> flush = CudaBuffer::allocate(2 * gpu.l2_cache_bytes);
  if (!flush.ok()) return resource_exhausted("linear: plans are not timed: ", flush.status().message());
  layers.flush = std::move(*flush);
  // Twice the cache goes by before a copy's turn comes again.
  const int64_t bytes = p.rows * p.cols * static_cast<int64_t>(size_of(p.dtype));
  const int64_t wanted = (2 * gpu.l2_cache_bytes + bytes - 1) / bytes;
  const int64_t copies = p.num_rows <= kFewRows ? std::clamp<int64_t>(wanted, 1, kMaxCopies) : 1;
  for (int64_t i = 0; i < copies; ++i) {
    if (copies > 1 || p.weight == nullptr) {
      ONEPASS_RETURN_IF_ERROR(fill(layers.weights.emplace_back(), p.dtype, p.rows * p.cols));
      params.weight = layers.weights.back().data();
    }
    layers.params.push_back(params);
  }
  // The numbers must be there before the weights are read, which no kernel waits for.
  ONEPASS_RETURN_IF_ERROR(stream.synchronize());
  return layers;
}

}  // namespace

StatusOr<std::vector<double>> time_linear(const CudaLinearParams& params, const GpuInfo& gpu,
                                          const std::vector<LinearRun>& runs) {
  ONEPASS_ASSIGN_OR_RETURN(const CudaStream stream, CudaStream::create());
  ONEPASS_ASSIGN_OR_RETURN(const Layers layers, make_layers(params, gpu, stream));
  ONEPASS_ASSIGN_OR_RETURN(CudaEvent before, CudaEvent::create());
  ONEPASS_ASSIGN_OR_RETURN(CudaEvent after, CudaEvent::create());
  const size_t copies = layers.params.size();
  const size_t rounds = params.num_rows <= kFewRows ? (kRuns + copies - 1) / copies : 1;
  const auto time = [&](const CudaGraph& graph) -> StatusOr<double> {
    // Empties the cache, and keeps the GPU busy until the host has queued the rest.
    ONEPASS_RETURN_IF_ERROR(
        cuda_status(cudaMemsetAsync(layers.flush.data(), 0, layers.flush.size(), stream.get()), "cudaMemsetAsync"));
    ONEPASS_RETURN_IF_ERROR(before.record(stream));
    ONEPASS_RETURN_IF_ERROR(graph.launch(stream));
    ONEPASS_RETURN_IF_ERROR(after.record(stream));
    return after.seconds_since(before);
  };
  std::vector<std::unique_ptr<CudaGraph>> graphs(runs.size());
  std::vector<double> best(runs.size(), HUGE_VAL);
  Status first_error;
  for (size_t i = 0; i < runs.size(); ++i) {
    StatusOr<CudaGraph> graph = CudaGraph::capture(stream, [&]() -> Status {
      for (size_t n = 0; n < rounds * copies; ++n) {
        if (params.num_rows <= kFewRows) ONEPASS_RETURN_IF_ERROR(run_pause_cuda(kPauseCycles, stream.get()));
        ONEPASS_RETURN_IF_ERROR(runs[i](layers.params[n % copies], stream.get()));
      }
      return ok_status();
    });
    // The first launch makes the graph ready and proves that it runs.
    const Status status = graph.ok() ? time(*graph).status() : graph.status();
    if (status.ok()) {
      graphs[i] = std::make_unique<CudaGraph>(std::move(*graph));
    } else if (first_error.ok()) {
      first_error = status;
    }
  }
  // In turns, as a GPU's clock changes.
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < runs.size(); ++i) {
      if (graphs[i] == nullptr) continue;
      ONEPASS_ASSIGN_OR_RETURN(const double seconds, time(*graphs[i]));
      best[i] = std::min(best[i], seconds / static_cast<double>(rounds * copies));
    }
  }
  if (!std::isfinite(*std::min_element(best.begin(), best.end()))) return first_error;
  return best;
}

}  // namespace onepass
