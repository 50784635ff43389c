// The AttentionBackend of a GPU: plan buffers in its memory, the kernels of attention/cuda/ chosen for each step.
#pragma once

#include <memory>

#include "attention/attention_backend.h"

namespace onepass {

// See make_attention_backend. plan() waits for nothing, and reads page-locked memory that it writes: the plan before must
// be done on the device. An error names what no kernel supports.
StatusOr<std::unique_ptr<AttentionBackend>> make_gpu_attention_backend(const AttentionOptions& options, KvPool& pool,
                                                                       const RequestTable& table,
                                                                       const Stream& stream);

}  // namespace onepass
