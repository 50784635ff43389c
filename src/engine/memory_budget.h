// What a model's start may take of a device's memory: plain arithmetic.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "engine/model_runner_options.h"

namespace onepass {

// In bytes, other programs' included.
struct DeviceMemory {
  int64_t total = 0;
  int64_t used = 0;
};

// A request's row of the page table has place for as many. REQUIRES: the context length is set.
int pages_of_request(const ModelRunnerOptions& options);

// The table exists four times: on the host, on a GPU, and in two steps' uploads. Its size follows from the most that
// requests may need, however few pages there are.
Status check_page_table(const ModelRunnerOptions& options);

// The pages of the KV cache, that of the dummy request included: as many as the options ask for, or as the memory
// holds beside what is used. `memory`: the machine's on the CPU, where what is used does not count.
StatusOr<int> count_kv_pages(const ModelRunnerOptions& options, int64_t bytes_per_page, const DeviceMemory& memory);

// Whether a GPU's memory is used to the fraction that the options allow and no further. Without kv_tokens the cache has
// been made so.
Status check_memory_fraction(const ModelRunnerOptions& options, const DeviceMemory& memory);

}  // namespace onepass
