#include "attention/attention_backend.h"

#include "attention/cpu/flash_attention.h"
#include "attention/gpu_attention_backend.h"
#include "attention/paged_attention_backend.h"
#include "attention/reference/reference_attention.h"

namespace onepass {
namespace {

// One pass over the pages with the kernels of src/attention/cpu/.
class FlashAttentionBackend final : public PagedAttentionBackend {
 public:
  using PagedAttentionBackend::PagedAttentionBackend;
  std::string_view name() const override { return "flash"; }

 private:
  void attend(const AttentionParams& params, const Stream& stream) override {
    flash_attention_cpu(params, workspace_, stream);
  }

  FlashAttentionWorkspace workspace_;
};

// The oracle in the engine's place: slow, scalar, in float64.
class ReferenceAttentionBackend final : public PagedAttentionBackend {
 public:
  using PagedAttentionBackend::PagedAttentionBackend;
  std::string_view name() const override { return "reference"; }

 private:
  void attend(const AttentionParams& params, const Stream& stream) override { reference_attention(params, stream); }
};

}  // namespace

StatusOr<AttentionKind> parse_attention_kind(std::string_view name) {
  if (name == "flash") return AttentionKind::kFlash;
  if (name == "reference") return AttentionKind::kReference;
  return invalid_argument("attention: expected flash or reference, found \"", name, "\"");
}

StatusOr<std::unique_ptr<AttentionBackend>> make_attention_backend(const AttentionOptions& options, KvPool& pool,
                                                                   const RequestTable& table, const Stream& stream) {
  if (stream.device.kind == DeviceKind::kCuda) return make_gpu_attention_backend(options, pool, table, stream);
  std::unique_ptr<AttentionBackend> backend;
  if (options.kind == AttentionKind::kFlash) {
    ONEPASS_RETURN_IF_ERROR(flash_attention_cpu_supports({.num_heads = 1,
                                                          .num_heads_kv = 1,
                                                          .head_dim = pool.config().head_dim,
                                                          .head_dim_v = pool.config().head_dim_v}));
    backend = std::make_unique<FlashAttentionBackend>(options, pool, table);
  } else {
    backend = std::make_unique<ReferenceAttentionBackend>(options, pool, table);
  }
  return backend;
}

}  // namespace onepass
