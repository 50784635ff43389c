// The AttentionBackend of a GPU: plan buffers in its memory, the kernels of attention/cuda/ chosen for each step.
#pragma once

#include <memory>

#include "attention/attention_backend.h"

namespace onepass {

// See make_attention_backend. An error names what no kernel supports. plan() allocates scratch memory when a shape
// needs more than any before: not while a graph is captured, so each captured shape has been planned once before.
StatusOr<std::unique_ptr<AttentionBackend>> make_gpu_attention_backend(const AttentionOptions& options, KvPool& pool,
                                                                       const RequestTable& table, const Stream& stream);

}  // namespace onepass
