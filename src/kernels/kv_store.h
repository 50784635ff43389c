// New keys and values into the pages of the KV cache.
#pragma once

#include <cstdint>

#include "tensor/device.h"
#include "tensor/dtype.h"

namespace onepass {

// Token t goes to slot slots[t] = page * page_size + offset of pools laid out [slots, num_kv_heads, head_dim] (which is
// what pages one after the other are), converted to their dtype. Pools hold more than 2^31 elements: offsets are
// 64-bit.
struct KvStoreParams {
  const float* k = nullptr;  // [num_tokens, num_kv_heads, head_dim]; heads side by side
  int64_t k_row_stride = 0;
  const float* v = nullptr;  // [num_tokens, num_kv_heads, head_dim_v]
  int64_t v_row_stride = 0;
  int64_t num_tokens = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int head_dim_v = 0;
  const int64_t* slots = nullptr;  // [num_tokens]
  void* k_pool = nullptr;
  void* v_pool = nullptr;
  DType dtype = DType::kBF16;  // of the pools: fp32, fp16 or bf16
};
void run_kv_store(const KvStoreParams& params, const Stream& stream);

}  // namespace onepass
