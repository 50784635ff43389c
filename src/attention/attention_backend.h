// The seam between models and attention: one plan per step, one run per layer.
//
// plan() writes everything that depends on the batch (lengths, page tables, slots) into buffers that the backend owns
// at fixed addresses; run() stores the layer's new K and V and reads only those buffers. Eager execution and the replay
// of a captured graph are therefore the same code; capture needs nothing but the limits stated when the backend is
// made.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "base/status.h"
#include "kv_cache/kv_pool.h"
#include "kv_cache/request_table.h"
#include "tensor/device.h"

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
};

// One step's requests: request r has tokens cu_seqlens_q[r] .. cu_seqlens_q[r+1]-1 of the step, and cache_seqlens[r]
// keys in all once they are stored. Read during plan() only.
struct AttentionBatch {
  int num_requests = 0;
  int num_tokens = 0;
  int max_seqlen_q = 0;
  const int32_t* cu_seqlens_q = nullptr;   // [num_requests + 1]
  const int32_t* cache_seqlens = nullptr;  // [num_requests]
  const int32_t* request_slots = nullptr;  // [num_requests], rows of the RequestTable
  const int64_t* out_cache_loc = nullptr;  // [num_tokens], where each new token's K and V go: page * page_size + offset
};

// One layer's activations: float32 on the CPU; q [num_tokens, num_heads, head_dim], k and v [num_tokens, num_kv_heads,
// ...] with rotary embedding applied, out [num_tokens, num_heads, head_dim_v]. Row strides in elements; heads lie side
// by side.
struct AttentionInputs {
  const float* q = nullptr;
  int64_t q_row_stride = 0;
  const float* k = nullptr;
  int64_t k_row_stride = 0;
  const float* v = nullptr;
  int64_t v_row_stride = 0;
  float* out = nullptr;
  int64_t out_row_stride = 0;
};

// Used by one thread at a time (the engine's).
class AttentionBackend {
 public:
  virtual ~AttentionBackend() = default;
  virtual std::string_view name() const = 0;

  // REQUIRES: the batch keeps to the limits; every row of the table holds the pages of its cache_seqlens keys.
  virtual void plan(const AttentionBatch& batch, const Stream& stream) = 0;

  // Causal attention of the planned batch in one layer: each token sees itself and what precedes it in its request.
  virtual void run(const AttentionLayer& layer, const AttentionInputs& io, const Stream& stream) = 0;
};

enum class AttentionKind { kFlash, kReference };

struct AttentionOptions {
  AttentionKind kind = AttentionKind::kFlash;
  // The largest step that will be planned.
  int max_requests = 0;
  int max_tokens = 0;
  // A token's result follows from its request's tokens alone, bit for bit (AttentionParams::batch_invariant).
  bool batch_invariant = false;
};

// "flash" or "reference".
StatusOr<AttentionKind> parse_attention_kind(std::string_view name);

// `pool` and `table` must outlive the backend. An error names what the backend does not support (a head dimension,
// say).
StatusOr<std::unique_ptr<AttentionBackend>> make_attention_backend(const AttentionOptions& options, KvPool& pool,
                                                                   const RequestTable& table, const Stream& stream);

}  // namespace onepass
