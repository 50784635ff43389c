#include "kernels/cuda/linear_timing.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/cuda/fill_random.h"
#include "kernels/cuda/pause.h"
#include "kernels/cuda/read_memory.h"
#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

constexpr int kRounds = 5;
constexpr double kLongGraph = 200e-6;    // seconds; of these,
constexpr int kLongRounds = 2;           // so many tell as much
constexpr double kClearlySlower = 1.15;  // than the best after the first round: no further one
constexpr int kFewRows = 64;             // up to which a layer's time is that of its weights' way from memory
// Calls in a graph of few rows, so many that the events' half a microsecond does not count.
constexpr int64_t kGraphBytes = int64_t{256} << 20;
constexpr int64_t kMaxCalls = 8;
// Before each call with few rows, some 2 us: in a decoder small kernels stand between the products, in which a kernel
// that begins early has its first weights brought. One after the other without them, memory alone would decide.
constexpr int64_t kPauseCycles = 3500;

int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

}  // namespace

StatusOr<LinearTimer> LinearTimer::create(const CudaLinearParams& params, const GpuInfo& gpu) {
  LinearTimer timer;
  ONEPASS_ASSIGN_OR_RETURN(timer.stream_, CudaStream::create());
  ONEPASS_RETURN_IF_ERROR(timer.fill(params, gpu));
  return timer;
}

Status LinearTimer::fill(const CudaLinearParams& params, const GpuInfo& gpu) {
  params_ = params;
  const int64_t bytes = params.rows * params.cols * static_cast<int64_t>(size_of(params.dtype));
  calls_ = static_cast<int>(std::clamp<int64_t>(divide_up(kGraphBytes, bytes), 1, kMaxCalls));
  // The cache is empty before a graph's launch, and twice what it holds goes by before a copy's turn comes again.
  copies_ = static_cast<int>(std::clamp<int64_t>(divide_up(2 * gpu.l2_cache_bytes, bytes), 1, calls_));
  uint64_t seed = 0;
  const auto allocate = [&](CudaBuffer& buffer, DType dtype, int64_t elements) -> Status {
    StatusOr<CudaBuffer> memory = CudaBuffer::allocate(elements * size_of(dtype));
    if (!memory.ok()) return resource_exhausted("linear: plans are not timed: ", memory.status().message());
    buffer = std::move(*memory);
    return run_fill_random_cuda({.data = buffer.data(), .dtype = dtype, .elements = elements, .seed = ++seed},
                                stream_.get());
  };
  const int64_t num_rows = params.num_rows;
  ONEPASS_RETURN_IF_ERROR(
      allocate(x_, params.norm != nullptr ? DType::kF32 : params.dtype, num_rows * params.x_row_stride));
  ONEPASS_RETURN_IF_ERROR(allocate(y_, params.y_dtype, num_rows * params.y_row_stride));
  params_.x = x_.data(), params_.y = y_.data();
  if (params.bias != nullptr) {
    ONEPASS_RETURN_IF_ERROR(allocate(bias_, DType::kF32, params.rows));
    params_.bias = bias_.as<float>();
  }
  if (params.norm != nullptr) {
    ONEPASS_RETURN_IF_ERROR(allocate(norm_, DType::kF32, params.cols));
    ONEPASS_RETURN_IF_ERROR(allocate(normed_, params.dtype, num_rows * params.cols));
    params_.norm = norm_.as<float>(), params_.normed = normed_.data();
  }
  if (params.gated) {
    ONEPASS_RETURN_IF_ERROR(allocate(products_, params.dtype, num_rows * params.rows));
    params_.products = products_.data();
  }
  if (copies_ > 1 || params.weight == nullptr) {
    ONEPASS_RETURN_IF_ERROR(allocate(weights_, params.dtype, copies_ * params.rows * params.cols));
    if (params.weight == nullptr) params_.weight = weights_.data();
  }
  StatusOr<CudaBuffer> flush = CudaBuffer::allocate_zeroed(2 * gpu.l2_cache_bytes);
  if (!flush.ok()) return resource_exhausted("linear: plans are not timed: ", flush.status().message());
  flush_ = std::move(*flush);
  // The numbers must be there before the weights are read, which no kernel waits for.
  return stream_.synchronize();
}

Status LinearTimer::run_calls(int64_t num_rows, const LinearRun& run) const {
  CudaLinearParams params = params_;
  params.num_rows = num_rows;
  if (num_rows > kFewRows) return run(params, stream_.get());
  const int64_t bytes = params.rows * params.cols * static_cast<int64_t>(size_of(params.dtype));
  for (int call = 0; call < calls_; ++call) {
    if (weights_.data() != nullptr) params.weight = weights_.as<std::byte>() + call % copies_ * bytes;
    ONEPASS_RETURN_IF_ERROR(run_pause_cuda(kPauseCycles, stream_.get()));
    ONEPASS_RETURN_IF_ERROR(run(params, stream_.get()));
  }
  return ok_status();
}

// The first launch makes a kernel ready and proves that it runs; its time does not count.
StatusOr<LinearTimer::Candidate> LinearTimer::make_candidate(int64_t num_rows, const LinearRun& run) const {
  ONEPASS_ASSIGN_OR_RETURN(CudaEvent before, CudaEvent::create());
  ONEPASS_ASSIGN_OR_RETURN(CudaEvent after, CudaEvent::create());
  // In a graph: launched one by one, kernels would be timed with the host's share.
  ONEPASS_ASSIGN_OR_RETURN(CudaGraph graph, CudaGraph::capture(stream_, [&] { return run_calls(num_rows, run); }));
  Candidate candidate{.graph = std::move(graph), .before = std::move(before), .after = std::move(after)};
  ONEPASS_RETURN_IF_ERROR(queue(num_rows, candidate));
  ONEPASS_RETURN_IF_ERROR(candidate.after.synchronize());
  return candidate;
}

Status LinearTimer::empty_cache(int64_t num_rows) const {
  // With few rows what was written would be in the way of the weights, whose way is what is timed. With many it must be
  // as in a model, where activations have just been written: of 192 x 14,336 by 4,096, the fastest algorithm there
  // seems a quarter slower than others after a read, and prompts of 192 tokens take 2% longer with what is chosen then.
  if (num_rows <= kFewRows) return run_read_memory_cuda(flush_.data(), flush_.size(), stream_.get());
  return cuda_status(cudaMemsetAsync(flush_.data(), 0, flush_.size(), stream_.get()), "cudaMemsetAsync");
}

Status LinearTimer::queue(int64_t num_rows, Candidate& candidate) const {
  ONEPASS_RETURN_IF_ERROR(empty_cache(num_rows));
  ONEPASS_RETURN_IF_ERROR(candidate.before.record(stream_));
  ONEPASS_RETURN_IF_ERROR(candidate.graph.launch(stream_));
  return candidate.after.record(stream_);
}

StatusOr<std::vector<double>> LinearTimer::time(int64_t num_rows, std::span<const LinearRun> runs) {
  std::vector<StatusOr<Candidate>> candidates;
  candidates.reserve(runs.size());
  for (const LinearRun& run : runs) candidates.push_back(make_candidate(num_rows, run));
  const double calls = num_rows > kFewRows ? 1 : calls_;
  std::vector<double> seconds(runs.size(), HUGE_VAL);
  double best = HUGE_VAL;
  int rounds = kRounds;
  // In turns, as a GPU's clock changes; the host waits once a round.
  for (int round = 0; round < rounds; ++round) {
    const double limit = best * kClearlySlower;
    const auto takes_part = [&](size_t i) { return candidates[i].ok() && (round == 0 || seconds[i] <= limit); };
    std::vector<size_t> timed;
    for (size_t i = 0; i < runs.size(); ++i) {
      if (!takes_part(i)) continue;
      ONEPASS_RETURN_IF_ERROR(queue(num_rows, *candidates[i]));
      timed.push_back(i);
    }
    for (const size_t i : timed) {
      ONEPASS_ASSIGN_OR_RETURN(const double all, candidates[i]->after.seconds_since(candidates[i]->before));
      seconds[i] = std::min(seconds[i], all / calls);
      best = std::min(best, seconds[i]);
    }
    if (best * calls > kLongGraph) rounds = kLongRounds;
  }
  if (std::isfinite(best)) return seconds;
  for (const StatusOr<Candidate>& candidate : candidates) ONEPASS_RETURN_IF_ERROR(candidate.status());
  return absl::InternalError("linear: nothing to be timed");
}

}  // namespace onepass
