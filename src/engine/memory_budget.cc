#include "engine/memory_budget.h"

#include <algorithm>
#include <cmath>

namespace onepass {
namespace {

// Pages of 1 token for 256 requests of 131,072, pages of 16 for 4,096 of them.
constexpr int64_t kMostTableBytes = int64_t{128} << 20;

int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// What has it, rounded up to a tenth of a percent.
std::string fraction_for(double bytes, const DeviceMemory& memory) {
  const double needed = bytes / static_cast<double>(memory.total);
  return needed <= 1.0 ? str_cat("a memory fraction of ", std::ceil(needed * 1000) / 1000, " has it")
                       : "the model does not fit";
}

}  // namespace

int pages_of_request(const ModelRunnerOptions& options) {
  return static_cast<int>(divide_up(options.context_length, options.page_size));
}

Status check_page_table(const ModelRunnerOptions& options) {
  const int64_t bytes = int64_t{options.max_requests} * pages_of_request(options) * int64_t{sizeof(int32_t)};
  if (bytes <= kMostTableBytes) return ok_status();
  return invalid_argument("page table: expected at most ", kMostTableBytes >> 20, " MiB, found ",
                          divide_up(bytes, int64_t{1} << 20), " for ", options.max_requests, " requests of ",
                          options.context_length, " tokens in pages of ", options.page_size,
                          ": larger pages, fewer requests or a shorter context take less");
}

StatusOr<int> count_kv_pages(const ModelRunnerOptions& options, int64_t bytes_per_page, const DeviceMemory& memory) {
  int64_t pages = divide_up(options.kv_tokens, options.page_size);
  if (options.kv_tokens == 0) {
    pages = int64_t{options.max_requests} * pages_of_request(options);
    const auto page = static_cast<double>(bytes_per_page), total = static_cast<double>(memory.total);
    double available = options.kv_memory_fraction * total;
    bool is_limited = options.kv_memory_fraction < 1.0;
    if (options.device.kind == DeviceKind::kCuda) {
      const auto used = static_cast<double>(memory.used);
      available = options.gpu_memory_fraction * total - used;
      if (available < 2 * page) {  // one is the dummy request's
        return resource_exhausted("KV cache: expected room for one page of ", options.page_size, " tokens (",
                                  bytes_per_page, " bytes) beside weights, workspace, graphs and other programs (",
                                  memory.used, " bytes) in ", options.gpu_memory_fraction, " of the GPU's ",
                                  memory.total, " bytes; ", fraction_for(used + 2 * page, memory));
      }
      available -= page;  // the dummy request's
      is_limited = true;
    }
    if (is_limited) pages = std::clamp<int64_t>(static_cast<int64_t>(available / page), 1, pages);
  }
  ++pages;  // page 0 is the dummy request's
  if (pages > INT32_MAX / 2) {
    return invalid_argument("KV cache: ", pages, " pages of ", options.page_size,
                            " tokens are more than can be numbered");
  }
  return static_cast<int>(pages);
}

Status check_memory_fraction(const ModelRunnerOptions& options, const DeviceMemory& memory) {
  const auto used = static_cast<double>(memory.used);
  if (options.kv_tokens == 0 || used <= options.gpu_memory_fraction * static_cast<double>(memory.total)) {
    return ok_status();
  }
  return resource_exhausted("memory: expected weights, workspace, graphs, other programs and a KV cache of ",
                            options.kv_tokens, " tokens in ", options.gpu_memory_fraction, " of the GPU's ",
                            memory.total, " bytes, found ", memory.used, "; ", fraction_for(used, memory));
}

}  // namespace onepass
