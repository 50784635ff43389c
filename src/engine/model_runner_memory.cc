// What a ModelRunner allocates at the start, and how it finds out what a GPU's memory has room for.
#include <algorithm>
#include <chrono>

#include "base/memory_info.h"
#include "engine/memory_budget.h"
#include "engine/model_runner.h"
#include "tensor/cuda/cuda_copy.h"

namespace onepass {
namespace {

StatusOr<DeviceMemory> gpu_memory() {
  ONEPASS_ASSIGN_OR_RETURN(const CudaMemory memory, cuda_memory());
  return DeviceMemory{.total = static_cast<int64_t>(memory.total),
                      .used = static_cast<int64_t>(memory.total - memory.free)};
}

}  // namespace

// What a step works in; the KV cache last, as it takes what is left.
Status ModelRunner::allocate() {
  ONEPASS_ASSIGN_OR_RETURN(ops_, make_decoder_ops({.weights_dtype = decoder_->weights_dtype(),
                                                   .batch_invariant = options_.deterministic,
                                                   .plan_file = options_.plan_file},
                                                  stream_));
  const bool is_on_gpu = options_.device.kind == DeviceKind::kCuda;
  DecoderWorkspace::Limits limits{.max_tokens = options_.max_tokens_per_step,
                                  .max_outputs = options_.max_outputs_per_step};
  max_batch_requests_ = options_.max_requests;
  if (is_on_gpu) {
    graphs_ = StepGraphs(std::min(options_.max_requests, options_.max_outputs_per_step), options_.max_tokens_per_step);
    max_batch_requests_ = std::max(max_batch_requests_, StepGraphs::kPrefillRequests);
    limits.max_outputs = std::max(limits.max_outputs, StepGraphs::kPrefillRequests);
  }
  ONEPASS_ASSIGN_OR_RETURN(workspace_,
                           DecoderWorkspace::create(config(), limits, ops_->activation_dtype(), stream_.device));
  ONEPASS_ASSIGN_OR_RETURN(logits_, LogitsBuffer::create(limits.max_outputs, config().vocab_size, stream_.device));
  ONEPASS_ASSIGN_OR_RETURN(sampler_, make_step_sampler({.vocab_size = config().vocab_size,
                                                        .max_slots = options_.max_requests,
                                                        .max_rows = limits.max_outputs},
                                                       stream_));
  ONEPASS_ASSIGN_OR_RETURN(clock_, StepClock::create(stream_.device));
  ONEPASS_RETURN_IF_ERROR(decoder_->prepare(*ops_, limits, logits_.row_stride()));

  KvPoolConfig kv = {.num_layers = config().num_layers,
                     .num_pages = 0,
                     .page_size = options_.page_size,
                     .num_kv_heads = config().num_kv_heads,
                     .head_dim = config().head_dim,
                     .head_dim_v = config().head_dim,
                     .dtype = options_.kv_dtype.value_or(decoder_->weights_dtype())};
  if (!is_on_gpu) {
    ONEPASS_ASSIGN_OR_RETURN(kv.num_pages, count_kv_pages(options_, kv.bytes_per_page(), {.total = machine_memory()}));
    return allocate_cache(kv);
  }
  int64_t beside_cache = 0;
  if (options_.kv_tokens == 0) {
    ONEPASS_ASSIGN_OR_RETURN(beside_cache, measure_beside_cache(kv));
  }
  ONEPASS_ASSIGN_OR_RETURN(const DeviceMemory before, gpu_memory());
  const DeviceMemory planned{.total = before.total, .used = before.used + beside_cache};
  ONEPASS_ASSIGN_OR_RETURN(kv.num_pages, count_kv_pages(options_, kv.bytes_per_page(), planned));
  ONEPASS_RETURN_IF_ERROR(allocate_cache(kv));
  ONEPASS_RETURN_IF_ERROR(capture_all_graphs());
  ONEPASS_ASSIGN_OR_RETURN(const DeviceMemory after, gpu_memory());
  return check_memory_fraction(options_, after);
}

Status ModelRunner::capture_all_graphs() {
  if (num_graphs() == 0) return ok_status();
  const auto start = std::chrono::steady_clock::now();
  ONEPASS_ASSIGN_OR_RETURN(const DeviceMemory before, gpu_memory());
  ONEPASS_RETURN_IF_ERROR(capture_graphs(0, num_graphs()));
  ONEPASS_ASSIGN_OR_RETURN(const DeviceMemory after, gpu_memory());
  graph_capture_ = {.count = static_cast<int>(num_graphs()),
                    .seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(),
                    .bytes = after.used - before.used};
  return ok_status();
}

Status ModelRunner::allocate_cache(const KvPoolConfig& kv) {
  ONEPASS_ASSIGN_OR_RETURN(pool_, KvPool::create(kv, stream_.device));
  const AttentionOptions attention{.kind = options_.attention,
                                   .max_requests = max_batch_requests_,
                                   .max_tokens = options_.max_tokens_per_step,
                                   .batch_invariant = options_.deterministic,
                                   .layers = decoder_->attention_layers(),
                                   .activation_dtype = ops_->activation_dtype()};
  ONEPASS_ASSIGN_OR_RETURN(backend_, make_attention_backend(attention, pool_, table_, stream_));
  if (options_.layer_stack && !options_.deterministic && options_.attention == AttentionKind::kFlash) {
    ONEPASS_ASSIGN_OR_RETURN(stack_, decoder_->make_stack(pool_, stream_));
  }
  const size_t ids = options_.max_tokens_per_step * sizeof(int32_t) + StepUpload::kAlignment;
  const size_t rows = workspace_.limits.max_outputs * sizeof(int32_t) + StepUpload::kAlignment;
  ONEPASS_ASSIGN_OR_RETURN(
      upload_, StepUpload::create(ids + rows + sampler_->upload_bytes() + backend_->upload_bytes(), stream_.device));
  return ok_status();
}

void ModelRunner::free_cache() {
  graphs_.clear();
  upload_ = StepUpload();
  stack_.reset();
  backend_.reset();
  pool_ = KvPool();
}

StatusOr<int64_t> ModelRunner::measure_beside_cache(KvPoolConfig kv) {
  kv.num_pages = 2;
  ONEPASS_ASSIGN_OR_RETURN(const DeviceMemory before, gpu_memory());
  ONEPASS_RETURN_IF_ERROR(allocate_cache(kv));
  // The first graph may be the first to use a kernel; the second one shows what each of the others takes.
  const size_t captured = std::min<size_t>(2, num_graphs());
  int64_t last_graph = 0;
  for (size_t i = 0; i < captured; ++i) {
    ONEPASS_ASSIGN_OR_RETURN(const DeviceMemory without, gpu_memory());
    ONEPASS_RETURN_IF_ERROR(capture_graphs(i, 1));
    ONEPASS_ASSIGN_OR_RETURN(const DeviceMemory with, gpu_memory());
    last_graph = with.used - without.used;
  }
  ONEPASS_ASSIGN_OR_RETURN(const DeviceMemory now, gpu_memory());
  free_cache();
  return now.used - before.used + static_cast<int64_t>(num_graphs() - captured) * last_graph;
}

Status ModelRunner::capture_graphs(size_t first, size_t count) {
  for (size_t i = first; i < first + count; ++i) {
    const StepShape shape = graphs_.shapes()[i];
    StepInput input;
    const auto prepare = [&]() -> Status {
      padded_.clear();
      padded_.pad(shape);
      ONEPASS_ASSIGN_OR_RETURN(input, set_inputs(padded_, {}));
      return ok_status();
    };
    const auto queue = [&]() -> Status {
      ONEPASS_RETURN_IF_ERROR(upload_.send_by_kernel(stream_));
      return queue_step(input);
    };
    ONEPASS_RETURN_IF_ERROR(graphs_.capture(shape, cuda_stream_, prepare, queue));
  }
  return ok_status();
}

}  // namespace onepass
