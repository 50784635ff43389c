#include "attention/gpu_attention_backend.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>
#include <vector>

#include "attention/cuda/flash_attention_cuda.h"
#include "attention/paged_attention_params.h"
#include "base/check.h"
#include "kernels/cuda/rope_store_kv.h"
#include "kernels/cuda/step_inputs.h"
#include "tensor/cuda/cuda_stream.h"
#include "tensor/device_buffer.h"

namespace onepass {
namespace {

// Whether one split plan serves both layers.
bool are_planned_alike(const AttentionLayer& a, const AttentionLayer& b) {
  return a.num_heads == b.num_heads && a.num_kv_heads == b.num_kv_heads && a.head_dim == b.head_dim &&
         a.head_dim_v == b.head_dim_v && a.window_left == b.window_left && a.attention_chunk == b.attention_chunk &&
         a.softcap == b.softcap && (a.sinks == nullptr) == (b.sinks == nullptr);
}

class GpuAttentionBackend final : public AttentionBackend {
 public:
  static StatusOr<std::unique_ptr<AttentionBackend>> create(const AttentionOptions& options, KvPool& pool,
                                                            const RequestTable& table, const Stream& stream);

  std::string_view name() const override { return options_.kind == AttentionKind::kFlash ? "flash" : "reference"; }
  size_t upload_bytes() const override;
  void set_batch(const AttentionBatch& batch, StepUpload& upload) override;
  Status plan(const Stream& stream) override;
  Status place_pages(const Stream& stream) override { return run_unpack_rows_cuda(pages_, stream.cuda); }
  PagedDecodes decodes() const override;
  Status run(const AttentionLayer& layer, const AttentionInputs& io, const Stream& stream) override;

 private:
  // The requests of a step that one kernel attends: those of one token at its beginning, which read much and compute
  // little, and the rest.
  enum PartIndex { kDecodes, kRest, kNumParts };
  struct Part {
    int first_token = 0;
    AttentionPlanView view;  // token numbers count from first_token
  };

  // Layers whose attention is planned alike, and their kernels in the present step.
  struct LayerKind {
    struct Kernel {
      const CudaAttentionKernel* kernel = nullptr;
      // Of each kernel, the last one the largest. Captured graphs hold the addresses of those that it has outgrown.
      std::map<const CudaAttentionKernel*, std::vector<DeviceBuffer>> scratch;

      CudaScratch memory() const {
        const DeviceBuffer& largest = scratch.at(kernel).back();
        return {largest.data(), static_cast<int64_t>(largest.size())};
      }
    };

    AttentionLayer layer;
    std::array<Kernel, kNumParts> kernels;
  };

  GpuAttentionBackend(const AttentionOptions& options, GpuInfo gpu, KvPool& pool, const RequestTable& table);
  Status allocate(const Device& device);

  // The kernel's parameters but for the addresses of the activations: what a plan is made of.
  AttentionParams planned(const AttentionLayer& layer, const AttentionPlanView& view) const;
  Status choose(LayerKind::Kernel& chosen, const AttentionParams& params, const Device& device) const;

  const AttentionOptions options_;
  const GpuInfo gpu_;
  KvPool& pool_;
  const RequestTable& table_;
  std::vector<LayerKind> kinds_;
  DeviceBuffer page_table_;  // [max_requests, max_pages_per_request]

  // The plan is made beside what comes before the first layer's attention: 6 us of a step's 900 in Qwen3-0.6B's shape.
  // A graph's branches are captured from streams.
  CudaStream side_;
  CudaEvent uploaded_, planned_;
  bool is_joined_ = true;  // the step's stream waits for the plan

  // The present step, in the device's memory.
  int num_tokens_ = 0;
  const int32_t* positions_ = nullptr;      // [num_tokens]
  const int64_t* out_cache_loc_ = nullptr;  // [num_tokens]
  CudaUnpackRowsParams pages_;
  std::array<Part, kNumParts> parts_;
};

StatusOr<std::unique_ptr<AttentionBackend>> GpuAttentionBackend::create(const AttentionOptions& options, KvPool& pool,
                                                                        const RequestTable& table,
                                                                        const Stream& stream) {
  // The plain kernel alone converts: far slower, which nobody asks for by naming a dtype.
  if (options.kind == AttentionKind::kFlash && pool.config().dtype != options.activation_dtype) {
    return invalid_argument("KV cache: dtype: expected ", to_string(options.activation_dtype),
                            ", in which this model runs on a GPU (or --attention reference), found ",
                            to_string(pool.config().dtype));
  }
  ONEPASS_ASSIGN_OR_RETURN(GpuInfo gpu, query_gpu(stream.device.index));
  std::unique_ptr<GpuAttentionBackend> backend(new GpuAttentionBackend(options, std::move(gpu), pool, table));
  ONEPASS_RETURN_IF_ERROR(backend->allocate(stream.device));
  return backend;
}

GpuAttentionBackend::GpuAttentionBackend(const AttentionOptions& options, GpuInfo gpu, KvPool& pool,
                                         const RequestTable& table)
    : options_(options), gpu_(std::move(gpu)), pool_(pool), table_(table) {}

Status GpuAttentionBackend::allocate(const Device& device) {
  const int64_t pages = int64_t{options_.max_requests} * table_.max_pages_per_request();
  ONEPASS_ASSIGN_OR_RETURN(page_table_, DeviceBuffer::allocate(static_cast<size_t>(pages) * sizeof(PageId), device));
  ONEPASS_ASSIGN_OR_RETURN(side_, CudaStream::create());
  ONEPASS_ASSIGN_OR_RETURN(uploaded_, CudaEvent::create());
  ONEPASS_ASSIGN_OR_RETURN(planned_, CudaEvent::create());
  const int32_t* const somewhere = page_table_.as<int32_t>();
  AttentionPlanView largest{.num_requests = options_.max_requests,
                            .cu_seqlens_q = somewhere,
                            .cache_seqlens = somewhere,
                            .page_table = somewhere,
                            .page_table_stride = table_.max_pages_per_request()};
  // Every kind of layer, in the largest steps of each sort: what no kernel can do is said now, and memory is taken now.
  struct {
    PartIndex part;
    int num_tokens, max_seqlen_q;
  } const steps[] = {{kRest, options_.max_tokens, options_.max_tokens},
                     {kRest, std::min(options_.max_tokens, 16 * options_.max_requests), 16},
                     {kDecodes, options_.max_requests, 1}};
  for (const AttentionLayer& layer : options_.layers) {
    const auto alike = [&](const LayerKind& kind) { return are_planned_alike(kind.layer, layer); };
    if (std::any_of(kinds_.begin(), kinds_.end(), alike)) continue;
    LayerKind& kind = kinds_.emplace_back(LayerKind{.layer = layer});
    for (const auto& step : steps) {
      largest.num_tokens = step.num_tokens;
      largest.max_seqlen_q = step.max_seqlen_q;
      ONEPASS_RETURN_IF_ERROR(choose(kind.kernels[step.part], planned(layer, largest), device));
    }
  }
  return ok_status();
}

AttentionParams GpuAttentionBackend::planned(const AttentionLayer& layer, const AttentionPlanView& view) const {
  // No plan depends on where the activations are; the pool's own address stands for them.
  void* const somewhere = pool_.k(layer.index);
  const int64_t q_size = int64_t{layer.num_heads} * layer.head_dim;
  const AttentionInputs io{.q = somewhere,
                           .k = somewhere,
                           .v = somewhere,
                           .row_stride = q_size + int64_t{layer.num_kv_heads} * (layer.head_dim + layer.head_dim_v),
                           .out = somewhere,
                           .out_row_stride = int64_t{layer.num_heads} * layer.head_dim_v,
                           .dtype = options_.activation_dtype};
  return paged_attention_params(layer, io, pool_, view, options_.batch_invariant);
}

// The kernel for `params`, and memory for it. A step can still ask for more than those that allocate() has thought of:
// for twice as much then, so that it stays rare.
Status GpuAttentionBackend::choose(LayerKind::Kernel& chosen, const AttentionParams& params,
                                   const Device& device) const {
  // The kernel without tiles and splits stands for the reference here: one thread block for each row.
  const std::string_view wanted = options_.kind == AttentionKind::kReference ? "naive" : "auto";
  ONEPASS_ASSIGN_OR_RETURN(chosen.kernel, choose_cuda_attention_kernel(params, gpu_, wanted));
  std::vector<DeviceBuffer>& scratch = chosen.scratch[chosen.kernel];
  const auto bytes = static_cast<size_t>(chosen.kernel->scratch_bytes(params, gpu_));
  if (!scratch.empty() && scratch.back().size() >= bytes) return ok_status();
  const size_t size = scratch.empty() ? bytes : std::max(bytes, 2 * scratch.back().size());
  ONEPASS_ASSIGN_OR_RETURN(DeviceBuffer larger, DeviceBuffer::allocate(size, device));
  scratch.push_back(std::move(larger));
  return ok_status();
}

size_t GpuAttentionBackend::upload_bytes() const {
  const size_t requests = options_.max_requests, tokens = options_.max_tokens;
  return requests * table_.max_pages_per_request() * sizeof(PageId) + 4 * (requests + 1) * sizeof(int32_t) +
         tokens * (sizeof(int32_t) + sizeof(int64_t)) + 7 * StepUpload::kAlignment;
}

void GpuAttentionBackend::set_batch(const AttentionBatch& batch, StepUpload& upload) {
  ONEPASS_CHECK_LE(batch.num_requests, options_.max_requests);
  ONEPASS_CHECK_LE(batch.num_tokens, options_.max_tokens);
  const int requests = batch.num_requests, decodes = batch.num_leading_decodes;
  // A step that failed between its plan and its first layer: the plan may still be reading what comes anew now.
  if (!std::exchange(is_joined_, true)) (void)side_.synchronize();

  num_tokens_ = batch.num_tokens;
  positions_ = upload.add<int32_t>({batch.positions, static_cast<size_t>(batch.num_tokens)});
  out_cache_loc_ = upload.add<int64_t>({batch.out_cache_loc, static_cast<size_t>(batch.num_tokens)});
  const int32_t* const cache_seqlens = upload.add<int32_t>({batch.cache_seqlens, static_cast<size_t>(requests)});
  const auto set_part = [&](PartIndex index, int begin, int end, int max_seqlen_q) {
    const int first_token = batch.cu_seqlens_q[begin];
    const auto cu_seqlens_q = upload.reserve<int32_t>(end - begin + 1);
    for (int request = begin; request <= end; ++request) {
      cu_seqlens_q.host[request - begin] = batch.cu_seqlens_q[request] - first_token;
    }
    const int64_t stride = table_.max_pages_per_request();
    parts_[index] = {.first_token = first_token,
                     .view = {.num_requests = end - begin,
                              .num_tokens = batch.cu_seqlens_q[end] - first_token,
                              .max_seqlen_q = max_seqlen_q,
                              .cu_seqlens_q = cu_seqlens_q.device,
                              .cache_seqlens = cache_seqlens + begin,
                              .page_table = page_table_.as<int32_t>() + begin * stride,
                              .page_table_stride = stride}};
  };
  set_part(kDecodes, 0, decodes, 1);
  set_part(kRest, decodes, requests, batch.max_seqlen_q);

  // The rows' used parts, side by side.
  const auto begins = upload.reserve<int32_t>(requests + 1);
  const int page_size = pool_.config().page_size;
  begins.host[0] = 0;
  for (int request = 0; request < requests; ++request) {
    begins.host[request + 1] = begins.host[request] + (batch.cache_seqlens[request] + page_size - 1) / page_size;
  }
  const auto packed = upload.reserve<int32_t>(begins.host[requests]);
  for (int request = 0; request < requests; ++request) {
    const std::span<const PageId> pages = table_.pages_or_dummy(batch.request_slots[request]);
    const auto used = static_cast<size_t>(begins.host[request + 1] - begins.host[request]);
    ONEPASS_CHECK_LE(used, pages.size());
    std::copy_n(pages.begin(), used, packed.host.begin() + begins.host[request]);
  }
  pages_ = {.packed = packed.device,
            .begin = begins.device,
            .num_rows = requests,
            .table = page_table_.as<int32_t>(),
            .table_stride = table_.max_pages_per_request()};
}

Status GpuAttentionBackend::plan(const Stream& stream) {
  ONEPASS_RETURN_IF_ERROR(uploaded_.record(stream.cuda));
  ONEPASS_RETURN_IF_ERROR(side_.wait(uploaded_));
  ONEPASS_RETURN_IF_ERROR(run_unpack_rows_cuda(pages_, side_.get()));
  for (LayerKind& kind : kinds_) {
    for (int i = 0; i < kNumParts; ++i) {
      if (parts_[i].view.num_requests == 0) continue;
      const AttentionParams params = planned(kind.layer, parts_[i].view);
      LayerKind::Kernel& chosen = kind.kernels[i];
      ONEPASS_RETURN_IF_ERROR(choose(chosen, params, stream.device));
      ONEPASS_RETURN_IF_ERROR(chosen.kernel->plan(params, gpu_, chosen.memory(), side_.get()));
    }
  }
  is_joined_ = false;
  return planned_.record(side_);
}

PagedDecodes GpuAttentionBackend::decodes() const {
  const AttentionPlanView& view = parts_[kDecodes].view;
  return {.cache_seqlens = view.cache_seqlens,
          .out_cache_loc = out_cache_loc_,
          .page_table = view.page_table,
          .page_table_stride = view.page_table_stride};
}

Status GpuAttentionBackend::run(const AttentionLayer& layer, const AttentionInputs& io, const Stream& stream) {
  if (!std::exchange(is_joined_, true)) ONEPASS_RETURN_IF_ERROR(CudaStream::wait(stream.cuda, planned_));
  ONEPASS_RETURN_IF_ERROR(run_rope_store_kv({.dtype = io.dtype,
                                             .q = io.q,
                                             .q_row_stride = io.row_stride,
                                             .q_head_stride = layer.head_dim,
                                             .q_out = io.q,
                                             .q_out_row_stride = io.row_stride,
                                             .q_out_head_stride = layer.head_dim,
                                             .k = io.k,
                                             .k_row_stride = io.row_stride,
                                             .k_head_stride = layer.head_dim,
                                             .v = io.v,
                                             .v_row_stride = io.row_stride,
                                             .v_head_stride = layer.head_dim_v,
                                             .num_tokens = num_tokens_,
                                             .num_heads = layer.num_heads,
                                             .num_heads_kv = layer.num_kv_heads,
                                             .head_dim = layer.head_dim,
                                             .head_dim_v = layer.head_dim_v,
                                             .q_norm = layer.q_norm,
                                             .k_norm = layer.k_norm,
                                             .norm_eps = layer.qk_norm_eps,
                                             .rotary_dim = layer.rotary_dim,
                                             .positions = positions_,
                                             .inv_freq = layer.rope_inv_freq,
                                             .attention_factor = layer.rope_attention_factor,
                                             .slots = out_cache_loc_,
                                             .slot_dtype = DType::kI64,
                                             .page_size = pool_.config().page_size,
                                             .pool_dtype = pool_.config().dtype,
                                             .k_pool = pool_.k(layer.index),
                                             .k_pool_page_stride = pool_.k_page_stride(),
                                             .k_pool_row_stride = pool_.k_row_stride(),
                                             .k_pool_head_stride = pool_.k_head_stride(),
                                             .v_pool = pool_.v(layer.index),
                                             .v_pool_page_stride = pool_.v_page_stride(),
                                             .v_pool_row_stride = pool_.v_row_stride(),
                                             .v_pool_head_stride = pool_.v_head_stride()},
                                            stream.cuda));
  const LayerKind& kind = *std::find_if(kinds_.begin(), kinds_.end(), [&](const LayerKind& candidate) {
    return are_planned_alike(candidate.layer, layer);
  });
  const auto element = static_cast<int64_t>(size_of(io.dtype));
  for (int i = 0; i < kNumParts; ++i) {
    const Part& part = parts_[i];
    if (part.view.num_requests == 0) continue;
    AttentionInputs of_part = io;
    of_part.q = static_cast<std::byte*>(io.q) + part.first_token * io.row_stride * element;
    of_part.out = static_cast<std::byte*>(io.out) + part.first_token * io.out_row_stride * element;
    const LayerKind::Kernel& chosen = kind.kernels[i];
    ONEPASS_RETURN_IF_ERROR(
        chosen.kernel->run(paged_attention_params(layer, of_part, pool_, part.view, options_.batch_invariant), gpu_,
                           chosen.memory(), stream.cuda));
  }
  return ok_status();
}

}  // namespace

StatusOr<std::unique_ptr<AttentionBackend>> make_gpu_attention_backend(const AttentionOptions& options, KvPool& pool,
                                                                       const RequestTable& table,
                                                                       const Stream& stream) {
  return GpuAttentionBackend::create(options, pool, table, stream);
}

}  // namespace onepass
