// All layers of a step of few decodes in one launch: thread blocks that stay on their multiprocessors from the first
// layer to the last, with the weights of what comes next always on the way, whatever the sums before it wait for.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "tensor/cuda_info.h"
#include "tensor/dtype.h"

struct CUstream_st;

namespace onepass {

// One layer, in the device's memory; matrices are row-major, [rows, cols], of the model's dtype. Biases and the norms
// of heads may be null.
struct StackLayer {
  const float* input_norm = nullptr;  // [hidden_size]
  const void* qkv = nullptr;          // [(num_heads + 2 num_kv_heads) head_dim, hidden_size]
  const float* qkv_bias = nullptr;
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
  const void* o = nullptr;        // [hidden_size, num_heads head_dim]
  const float* o_bias = nullptr;
  const float* post_attention_norm = nullptr;  // [hidden_size]
  const void* gate_up = nullptr;               // [2 intermediate_size, hidden_size]
  const float* gate_up_bias = nullptr;
  const void* down = nullptr;  // [hidden_size, intermediate_size]
  const float* down_bias = nullptr;
  void* k_pool = nullptr;  // pages of keys and values, of the model's dtype
  void* v_pool = nullptr;
  const void* k_map = nullptr;  // tensor maps of both, in the device's memory: see stack_box_keys()
  const void* v_map = nullptr;
  int64_t window_left = -1;  // keys before its own that a token sees; -1: all
};

// What all layers share.
struct StackShape {
  DType dtype = DType::kBF16;  // float16 or bfloat16
  int num_layers = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  float norm_eps = 0.0f;
  float softmax_scale = 0.0f;
  float rope_attention_factor = 1.0f;
  const double* rope_inv_freq = nullptr;  // [head_dim / 2], in the device's memory

  // Of pages of keys, and of values, one after the other: in elements.
  int page_size = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};

// How the work lies on a GPU: what follows from the shape and the number of rows.
struct StackPlan {
  int max_rows = 0;  // 0: this shape is none for the kernel
  int blocks = 0;
  int ring_slots = 0;
  // In bytes. The memory that thread blocks exchange activations through: three sets, and a word that says which of
  // them comes next; all ones but for that word before the first launch.
  int64_t set_bytes = 0;
  int64_t exchange_bytes = 0;
};

// The keys that are copied at once, of one page: a tensor map's box has 64 dimensions of one head of so many keys, its
// tensor head_dim, num_kv_heads and all keys of the pool.
int stack_box_keys(int page_size);

// The most rows at once that the kernel takes on this GPU, or none: it is Hopper's, for plain grouped-query attention
// with rotated heads of 64 or 128 whose groups are at most 8, sizes that are multiples of 64, and pages of 16 tokens
// and more.
StackPlan plan_stack(const StackShape& shape, const GpuInfo& gpu);

struct StackParams {
  StackShape shape;
  StackPlan plan;
  const StackLayer* layers = nullptr;  // [num_layers], in the device's memory
  void* exchange = nullptr;            // [plan.exchange_bytes]

  int num_rows = 0;         // requests, one token each: up to plan.max_rows
  float* hidden = nullptr;  // [num_rows, hidden_size]: the residual stream, before and after
  // The step, in the device's memory: keys of each request with the new one, where that goes (page * page_size +
  // offset), and each request's pages.
  const int32_t* cache_seqlens = nullptr;  // [num_rows]
  const int64_t* slots = nullptr;          // [num_rows]
  const int32_t* page_table = nullptr;     // [num_rows, page_table_stride]
  int64_t page_table_stride = 0;
};

// Queues the work. Weights and the array of layers are read before earlier kernels of the stream have ended, all else
// after. One launch at a time uses an exchange.
Status run_layer_stack(const StackParams& params, CUstream_st* stream);

// Before the first launch.
Status init_stack_exchange(const StackPlan& plan, void* exchange, CUstream_st* stream);

}  // namespace onepass
