#include "engine/decode_graphs.h"

#include <algorithm>
#include <ranges>
#include <utility>

namespace onepass {

DecodeGraphs::DecodeGraphs(int max_requests) {
  const int largest = std::min(max_requests, kLargest);
  for (int size = 1; size < largest; size += size < 8 ? size : 8) sizes_.push_back(size);
  sizes_.push_back(largest);
}

std::optional<int> DecodeGraphs::size_for(int num_requests) const {
  const auto size = std::lower_bound(sizes_.begin(), sizes_.end(), num_requests);
  if (size == sizes_.end()) return std::nullopt;
  return *size;
}

Status DecodeGraphs::capture(const CudaStream& stream, absl::FunctionRef<Status(int size)> prepare,
                             absl::FunctionRef<Status(int size)> queue) {
  for (const int size : std::views::reverse(sizes_)) {
    ONEPASS_RETURN_IF_ERROR(prepare(size));
    ONEPASS_RETURN_IF_ERROR(queue(size));
    ONEPASS_RETURN_IF_ERROR(stream.synchronize());
    ONEPASS_ASSIGN_OR_RETURN(CudaGraph graph, CudaGraph::capture(stream, [&] { return queue(size); }));
    graphs_.insert_or_assign(size, std::move(graph));
  }
  return ok_status();
}

}  // namespace onepass
