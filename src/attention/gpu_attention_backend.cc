#include "attention/gpu_attention_backend.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "attention/cuda/flash_attention_cuda.h"
#include "attention/paged_attention_params.h"
#include "base/check.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/rope_store_kv.h"
#include "tensor/cuda/cuda_copy.h"
#include "tensor/cuda/pinned_buffer.h"
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
  Status set_batch(const AttentionBatch& batch, const Stream& stream) override;
  Status plan(const Stream& stream) override;
  Status run(const AttentionLayer& layer, const AttentionInputs& io, const Stream& stream) override;

 private:
  // Layers whose attention is planned alike, and their kernel in the present step.
  struct LayerKind {
    AttentionLayer layer;
    const CudaAttentionKernel* kernel = nullptr;
    // Of each kernel, the last one the largest. Captured graphs hold the addresses of those that it has outgrown.
    std::map<const CudaAttentionKernel*, std::vector<DeviceBuffer>> scratch;

    CudaScratch memory() const {
      const DeviceBuffer& largest = scratch.at(kernel).back();
      return {largest.data(), static_cast<int64_t>(largest.size())};
    }
  };

  GpuAttentionBackend(const AttentionOptions& options, GpuInfo gpu, KvPool& pool, const RequestTable& table);
  Status allocate(const Device& device);

  // The kernel's parameters but for the addresses of the activations: what a plan is made of.
  AttentionParams planned(const AttentionLayer& layer, const AttentionPlanView& view) const;
  StatusOr<const CudaAttentionKernel*> choose(const AttentionParams& params) const;
  Status reserve(LayerKind& kind, const CudaAttentionKernel& kernel, const AttentionParams& params,
                 const Device& device) const;
  Status norm_heads(const AttentionLayer& layer, const AttentionInputs& io, void* x, int num_heads, const float* norm,
                    const Stream& stream) const;

  const AttentionOptions options_;
  const GpuInfo gpu_;
  KvPool& pool_;
  const RequestTable& table_;
  std::vector<LayerKind> kinds_;

  // Written by set_batch(), read by plan() and run(): [max_requests + 1], [max_requests], [max_tokens], [max_tokens],
  // [max_requests, max_pages_per_request]; each on the host and on the device.
  struct Array {
    PinnedBuffer host;
    DeviceBuffer device;
  };
  Array cu_seqlens_q_, cache_seqlens_, positions_, out_cache_loc_, page_table_;
  AttentionPlanView view_;
};

StatusOr<std::unique_ptr<AttentionBackend>> GpuAttentionBackend::create(const AttentionOptions& options, KvPool& pool,
                                                                        const RequestTable& table,
                                                                        const Stream& stream) {
  ONEPASS_ASSIGN_OR_RETURN(GpuInfo gpu, query_gpu(stream.device.index));
  std::unique_ptr<GpuAttentionBackend> backend(new GpuAttentionBackend(options, std::move(gpu), pool, table));
  ONEPASS_RETURN_IF_ERROR(backend->allocate(stream.device));
  return backend;
}

GpuAttentionBackend::GpuAttentionBackend(const AttentionOptions& options, GpuInfo gpu, KvPool& pool,
                                         const RequestTable& table)
    : options_(options), gpu_(std::move(gpu)), pool_(pool), table_(table) {}

Status GpuAttentionBackend::allocate(const Device& device) {
  const auto make = [&](Array& array, size_t bytes) -> Status {
    ONEPASS_ASSIGN_OR_RETURN(array.host, PinnedBuffer::allocate(bytes));
    ONEPASS_ASSIGN_OR_RETURN(array.device, DeviceBuffer::allocate(bytes, device));
    return ok_status();
  };
  const size_t requests = options_.max_requests, tokens = options_.max_tokens;
  ONEPASS_RETURN_IF_ERROR(make(cu_seqlens_q_, (requests + 1) * sizeof(int32_t)));
  ONEPASS_RETURN_IF_ERROR(make(cache_seqlens_, requests * sizeof(int32_t)));
  ONEPASS_RETURN_IF_ERROR(make(positions_, tokens * sizeof(int32_t)));
  ONEPASS_RETURN_IF_ERROR(make(out_cache_loc_, tokens * sizeof(int64_t)));
  ONEPASS_RETURN_IF_ERROR(make(page_table_, requests * table_.max_pages_per_request() * sizeof(int32_t)));
  view_ = {.cu_seqlens_q = cu_seqlens_q_.device.as<int32_t>(),
           .cache_seqlens = cache_seqlens_.device.as<int32_t>(),
           .page_table = page_table_.device.as<int32_t>(),
           .page_table_stride = table_.max_pages_per_request()};
  // Every kind of layer, in the largest steps of each sort: what no kernel can do is said now, and memory is taken now.
  const int requests_and_tokens[][2] = {{options_.max_tokens, options_.max_tokens},
                                        {std::min(options_.max_tokens, 16 * options_.max_requests), 16},
                                        {options_.max_requests, 1}};
  for (const AttentionLayer& layer : options_.layers) {
    const auto alike = [&](const LayerKind& kind) { return are_planned_alike(kind.layer, layer); };
    if (std::any_of(kinds_.begin(), kinds_.end(), alike)) continue;
    LayerKind& kind = kinds_.emplace_back(LayerKind{.layer = layer});
    for (const auto& [num_tokens, max_seqlen_q] : requests_and_tokens) {
      AttentionPlanView largest = view_;
      largest.num_requests = options_.max_requests;
      largest.num_tokens = num_tokens;
      largest.max_seqlen_q = max_seqlen_q;
      const AttentionParams params = planned(layer, largest);
      ONEPASS_ASSIGN_OR_RETURN(const CudaAttentionKernel* const kernel, choose(params));
      ONEPASS_RETURN_IF_ERROR(reserve(kind, *kernel, params, device));
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

StatusOr<const CudaAttentionKernel*> GpuAttentionBackend::choose(const AttentionParams& params) const {
  // The kernel without tiles and splits stands for the reference here: one thread block for each row.
  return choose_cuda_attention_kernel(params, gpu_, options_.kind == AttentionKind::kReference ? "naive" : "auto");
}

// A step can still ask for more than those that allocate() has thought of: for twice as much then, so that it stays
// rare.
Status GpuAttentionBackend::reserve(LayerKind& kind, const CudaAttentionKernel& kernel, const AttentionParams& params,
                                    const Device& device) const {
  std::vector<DeviceBuffer>& scratch = kind.scratch[&kernel];
  const auto bytes = static_cast<size_t>(kernel.scratch_bytes(params, gpu_));
  if (!scratch.empty() && scratch.back().size() >= bytes) return ok_status();
  const size_t wanted = scratch.empty() ? bytes : std::max(bytes, 2 * scratch.back().size());
  ONEPASS_ASSIGN_OR_RETURN(DeviceBuffer larger, DeviceBuffer::allocate(wanted, device));
  scratch.push_back(std::move(larger));
  return ok_status();
}

Status GpuAttentionBackend::set_batch(const AttentionBatch& batch, const Stream& stream) {
  ONEPASS_CHECK_LE(batch.num_requests, options_.max_requests);
  ONEPASS_CHECK_LE(batch.num_tokens, options_.max_tokens);
  const auto upload = [&](Array& array, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(array.host.data(), from, bytes);
    return copy_async(array.device.data(), array.host.data(), bytes, stream.cuda);
  };
  const size_t requests = batch.num_requests, tokens = batch.num_tokens;
  ONEPASS_RETURN_IF_ERROR(upload(cu_seqlens_q_, batch.cu_seqlens_q, (requests + 1) * sizeof(int32_t)));
  ONEPASS_RETURN_IF_ERROR(upload(cache_seqlens_, batch.cache_seqlens, requests * sizeof(int32_t)));
  ONEPASS_RETURN_IF_ERROR(upload(positions_, batch.positions, tokens * sizeof(int32_t)));
  ONEPASS_RETURN_IF_ERROR(upload(out_cache_loc_, batch.out_cache_loc, tokens * sizeof(int64_t)));

  // The rows' used parts, side by side at the table's own pitch.
  const int page_size = pool_.config().page_size;
  const size_t pitch = static_cast<size_t>(table_.max_pages_per_request()) * sizeof(PageId);
  size_t most = 0;
  for (int request = 0; request < batch.num_requests; ++request) {
    const std::span<const PageId> pages = table_.pages_or_dummy(batch.request_slots[request]);
    const size_t used = (batch.cache_seqlens[request] + page_size - 1) / page_size;
    ONEPASS_CHECK_LE(used, pages.size());
    std::copy_n(pages.begin(), used, reinterpret_cast<PageId*>(page_table_.host.data() + request * pitch));
    most = std::max(most, used);
  }
  ONEPASS_RETURN_IF_ERROR(copy_rows_async(page_table_.device.data(), pitch, page_table_.host.data(), pitch,
                                          most * sizeof(PageId), requests, stream.cuda));

  view_.num_requests = batch.num_requests;
  view_.num_tokens = batch.num_tokens;
  view_.max_seqlen_q = batch.max_seqlen_q;
  return ok_status();
}

Status GpuAttentionBackend::plan(const Stream& stream) {
  for (LayerKind& kind : kinds_) {
    const AttentionParams params = planned(kind.layer, view_);
    ONEPASS_ASSIGN_OR_RETURN(kind.kernel, choose(params));
    ONEPASS_RETURN_IF_ERROR(reserve(kind, *kind.kernel, params, stream.device));
    ONEPASS_RETURN_IF_ERROR(kind.kernel->plan(params, gpu_, kind.memory(), stream.cuda));
  }
  return ok_status();
}

Status GpuAttentionBackend::norm_heads(const AttentionLayer& layer, const AttentionInputs& io, void* x, int num_heads,
                                       const float* norm, const Stream& stream) const {
  if (norm == nullptr) return ok_status();
  return run_rms_norm_cuda({.x = x,
                            .x_dtype = io.dtype,
                            .x_group_stride = io.row_stride,
                            .x_row_stride = layer.head_dim,
                            .weight = norm,
                            .eps = layer.qk_norm_eps,
                            .out = x,
                            .out_dtype = io.dtype,
                            .out_group_stride = io.row_stride,
                            .out_row_stride = layer.head_dim,
                            .num_groups = view_.num_tokens,
                            .rows = num_heads,
                            .cols = layer.head_dim},
                           stream.cuda);
}

Status GpuAttentionBackend::run(const AttentionLayer& layer, const AttentionInputs& io, const Stream& stream) {
  ONEPASS_RETURN_IF_ERROR(norm_heads(layer, io, io.q, layer.num_heads, layer.q_norm, stream));
  ONEPASS_RETURN_IF_ERROR(norm_heads(layer, io, io.k, layer.num_kv_heads, layer.k_norm, stream));
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
                                             .num_tokens = view_.num_tokens,
                                             .num_heads = layer.num_heads,
                                             .num_heads_kv = layer.num_kv_heads,
                                             .head_dim = layer.head_dim,
                                             .head_dim_v = layer.head_dim_v,
                                             .rotary_dim = layer.rotary_dim,
                                             .positions = positions_.device.as<int32_t>(),
                                             .inv_freq = layer.rope_inv_freq,
                                             .attention_factor = layer.rope_attention_factor,
                                             .slots = out_cache_loc_.device.data(),
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
  return kind.kernel->run(paged_attention_params(layer, io, pool_, view_, options_.batch_invariant), gpu_,
                          kind.memory(), stream.cuda);
}

}  // namespace

StatusOr<std::unique_ptr<AttentionBackend>> make_gpu_attention_backend(const AttentionOptions& options, KvPool& pool,
                                                                       const RequestTable& table,
                                                                       const Stream& stream) {
  return GpuAttentionBackend::create(options, pool, table, stream);
}

}  // namespace onepass
