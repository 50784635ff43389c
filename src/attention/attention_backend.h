// The seam between models and attention: one batch and one plan per step, one run per layer.
//
// set_batch() puts everything that depends on the batch (lengths, page tables, slots) into the step's upload, at
// addresses that follow from the numbers of requests and tokens alone, and plan() makes of it how the device shares the
// work; run() rotates and stores the layer's new K and V and reads only that. Eager execution and the replay of a
// captured graph are therefore the same code: a graph holds the upload, plan() and every run(), and set_batch() comes
// before its launch. Capture needs nothing but the limits stated when the backend is made.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/status.h"
#include "kv_cache/kv_pool.h"
#include "kv_cache/request_table.h"
#include "tensor/device.h"
#include "tensor/step_upload.h"

namespace onepass {

// What one layer's attention is, for the life of the model.
struct AttentionLayer {
  int index = 0;  // which K and V of the pool
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int head_dim_v = 0;
  float softmax_scale = 1.0f;
  int window_left =
      -1;  // keys before its own that a token sees; -1: all (Hugging Face's sliding_window W is W - 1 here)
  int attention_chunk = 0;
  float softcap = 0.0f;
  const float* sinks = nullptr;  // [num_heads], owned by the model

  // What comes between the projections and attention: an RMS norm of each head of Q and K (null: none), then the rotary
  // embedding of kernels/rope.h. The arrays are the model's, in the device's memory.
  int rotary_dim = 0;
  const double* rope_inv_freq = nullptr;  // [rotary_dim / 2]
  float rope_attention_factor = 1.0f;
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
  float qk_norm_eps = 0.0f;
};

// One step's requests: request r has tokens cu_seqlens_q[r] .. cu_seqlens_q[r+1]-1 of the step, and cache_seqlens[r]
// keys in all once they are stored. Requests of one token come first where there are any: they are attended by a kernel
// of their own. Read during set_batch() only.
struct AttentionBatch {
  int num_requests = 0;
  int num_tokens = 0;
  int max_seqlen_q = 0;
  int num_leading_decodes = 0;             // requests of one token at the beginning
  const int32_t* cu_seqlens_q = nullptr;   // [num_requests + 1]
  const int32_t* cache_seqlens = nullptr;  // [num_requests]
  const int32_t* request_slots = nullptr;  // [num_requests], rows of the RequestTable; -1: the dummy request of page 0
  const int32_t* positions = nullptr;      // [num_tokens], of each token in its request
  const int64_t* out_cache_loc = nullptr;  // [num_tokens], where each new token's K and V go: page * page_size + offset
};

// One layer's activations, in the device's memory: what the projections gave, q [num_tokens, num_heads, head_dim], k
// and v [num_tokens, num_kv_heads, ...], which are changed; and out [num_tokens, num_heads, head_dim_v]. Row strides in
// elements; heads lie side by side.
struct AttentionInputs {
  void* q = nullptr;
  void* k = nullptr;
  void* v = nullptr;
  int64_t row_stride = 0;  // of q, k and v
  void* out = nullptr;
  int64_t out_row_stride = 0;
  DType dtype = DType::kF32;  // of all four: float32 on the CPU, float16 or bfloat16 on a GPU
};

// A step of decodes alone as it lies in the device's memory, for a kernel that attends beside its other work.
struct PagedDecodes {
  const int32_t* cache_seqlens = nullptr;  // [num_requests]
  const int64_t* out_cache_loc = nullptr;  // [num_requests]
  const int32_t* page_table = nullptr;     // [num_requests, page_table_stride]
  int64_t page_table_stride = 0;
};

// Used by one thread at a time (the engine's).
class AttentionBackend {
 public:
  virtual ~AttentionBackend() = default;
  virtual std::string_view name() const = 0;

  // What set_batch() adds to an upload at most, in bytes.
  virtual size_t upload_bytes() const = 0;

  // The step's requests; `upload` is sent before plan() runs on the device. What is added last may differ in size
  // between steps of as many requests and tokens. REQUIRES: the batch keeps to the limits; every row of the table holds
  // the pages of its cache_seqlens keys.
  virtual void set_batch(const AttentionBatch& batch, StepUpload& upload) = 0;

  // Once a step, after set_batch(). On a GPU this and run() only queue work, and errors are CUDA's; it may be captured
  // with the run() calls after it: a replay serves any batch with the same num_requests, num_tokens and max_seqlen_q
  // whose upload had the same layout. What is queued between it and the first run() does not wait for it.
  virtual Status plan(const Stream& stream) = 0;

  // For a step whose layers are computed without run(): all of plan() that decodes() asks for.
  virtual Status place_pages(const Stream&) { return ok_status(); }
  // The present step's. Empty where kernels are given no addresses.
  virtual PagedDecodes decodes() const { return {}; }

  // Normalises, rotates and stores the new Q, K and V of one layer, then attends: each token sees itself and what
  // precedes it in its request.
  virtual Status run(const AttentionLayer& layer, const AttentionInputs& io, const Stream& stream) = 0;
};

enum class AttentionKind { kFlash, kReference };

struct AttentionOptions {
  AttentionKind kind = AttentionKind::kFlash;
  // The largest step that will be planned.
  int max_requests = 0;
  int max_tokens = 0;
  // A token's result follows from its request's tokens alone, bit for bit (AttentionParams::batch_invariant).
  bool batch_invariant = false;
  // All layers that run() will be called with, and the dtype of its inputs.
  std::span<const AttentionLayer> layers;
  DType activation_dtype = DType::kF32;
};

// "flash" or "reference".
StatusOr<AttentionKind> parse_attention_kind(std::string_view name);

// `pool` and `table` must outlive the backend. An error names what the backend does not support (a head dimension,
// say).
StatusOr<std::unique_ptr<AttentionBackend>> make_attention_backend(const AttentionOptions& options, KvPool& pool,
                                                                   const RequestTable& table, const Stream& stream);

}  // namespace onepass
