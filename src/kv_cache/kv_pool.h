// The storage of keys and values: for each layer one K and one V array of pages (SGLang's TokenToKVPool).
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "tensor/device_buffer.h"
#include "tensor/dtype.h"

namespace onepass {

struct KvPoolConfig {
  int num_layers = 0;
  int num_pages = 0;   // page 0 included, which no request owns
  int page_size = 64;  // tokens, 1 to 256
  int num_kv_heads = 0;
  int head_dim = 0;
  int head_dim_v = 0;
  DType dtype = DType::kBF16;  // fp32, fp16 or bf16

  // K and V of one token in all layers, and of one page.
  int64_t bytes_per_token() const;
  int64_t bytes_per_page() const { return bytes_per_token() * page_size; }
};

// K of a layer is [num_pages, page_size, num_kv_heads, head_dim], V likewise with head_dim_v: FlashAttention-3's paged
// layout, in the memory of one device. On the CPU memory is reserved at once and becomes resident as pages are first
// written.
class KvPool {
 public:
  KvPool() = default;  // empty
  // An error names the field that is wrong, or how much memory was not to be had.
  static StatusOr<KvPool> create(const KvPoolConfig& config, const Device& device = Device());

  const KvPoolConfig& config() const { return config_; }
  void* k(int layer) { return k_.at(layer).data(); }
  void* v(int layer) { return v_.at(layer).data(); }

  // Copies K and V of the first `num_tokens` tokens of page `from` to page `to`, in every layer. On a GPU the work is
  // queued.
  Status copy_page(int from, int to, int num_tokens, const Stream& stream);

  // Strides in elements.
  int64_t k_head_stride() const { return config_.head_dim; }
  int64_t v_head_stride() const { return config_.head_dim_v; }
  int64_t k_row_stride() const { return k_head_stride() * config_.num_kv_heads; }
  int64_t v_row_stride() const { return v_head_stride() * config_.num_kv_heads; }
  int64_t k_page_stride() const { return k_row_stride() * config_.page_size; }
  int64_t v_page_stride() const { return v_row_stride() * config_.page_size; }

 private:
  explicit KvPool(const KvPoolConfig& config) : config_(config) {}

  KvPoolConfig config_;
  std::vector<DeviceBuffer> k_;
  std::vector<DeviceBuffer> v_;
};

}  // namespace onepass
