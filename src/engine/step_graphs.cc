#include "engine/step_graphs.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace onepass {

StepGraphs::StepGraphs(int max_requests, int max_tokens) {
  const int most_decodes = std::min({max_requests, max_tokens, kMostDecodes});
  for (int size = 1; size < most_decodes; size += size < 8 ? size : size < 256 ? 8 : 16)
    shapes_.push_back({size, size});
  shapes_.push_back({most_decodes, most_decodes});
  // Two steps to each doubling: padding is a third of the work at most.
  for (int tokens = 16; tokens <= std::min(max_tokens, kMostPrefillTokens);) {
    shapes_.push_back({tokens, kPrefillRequests});
    const int doubling = static_cast<int>(std::bit_floor(static_cast<unsigned>(tokens)));
    tokens += tokens < 32 ? 16 : doubling / 2;
  }
  std::sort(shapes_.begin(), shapes_.end(), [](const StepShape& a, const StepShape& b) { return b < a; });
}

std::optional<StepShape> StepGraphs::shape_for(const Batch& batch) const {
  const bool is_decode = batch.is_decode();
  const bool is_prefill = batch.num_leading_decodes() == 0 && batch.num_requests() < kPrefillRequests &&
                          std::ssize(batch.output_rows) <= kPrefillRequests;
  if (!is_decode && !is_prefill) return std::nullopt;
  std::optional<StepShape> smallest;
  for (const StepShape& shape : shapes_) {
    if (shape.is_decode() == is_decode && shape.num_tokens >= batch.num_tokens()) smallest = shape;
  }
  return smallest;
}

Status StepGraphs::capture(const StepShape& shape, const CudaStream& stream, absl::FunctionRef<Status()> prepare,
                           absl::FunctionRef<Status()> queue) {
  ONEPASS_RETURN_IF_ERROR(prepare());
  ONEPASS_RETURN_IF_ERROR(queue());
  ONEPASS_RETURN_IF_ERROR(stream.synchronize());
  ONEPASS_ASSIGN_OR_RETURN(CudaGraph graph, CudaGraph::capture(stream, queue));
  graphs_.insert_or_assign(shape, std::move(graph));
  return ok_status();
}

const CudaGraph* StepGraphs::graph(const StepShape& shape) const {
  const auto found = graphs_.find(shape);
  return found == graphs_.end() ? nullptr : &found->second;
}

}  // namespace onepass
