// Random attention problems with everything in them that must not matter, for the tests and benchmarks of kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "attention/attention_params.h"
#include "tensor/buffer.h"
#include "tensor/device.h"

namespace onepass {

// What a problem is; the fields that AttentionParams has too mean what they mean there.
struct AttentionSpec {
  uint64_t seed = 1;
  std::vector<int> seqlens_q;  // [batch]
  std::vector<int> seqlens_k;  // [batch], all keys of the request
  int num_heads = 4;
  int num_heads_kv = 2;
  int head_dim = 64;
  int head_dim_v = 64;
  int page_size = 16;  // 0: contiguous
  DType q_dtype = DType::kF32;
  DType kv_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  bool causal = true;
  int window_left = -1;
  int window_right = -1;
  int attention_chunk = 0;
  float softcap = 0.0f;
  bool sinks = false;
  bool descales = false;
  int num_splits = 0;
  int split_size = 0;
  bool batch_invariant = false;
  float score_deviation = 1.0f;  // standard deviation of softmax_scale * q.k before the descales
  int padding = 0;               // elements between the rows of q, out and, when contiguous, k and v
  int capacity_k =
      0;  // the pool and page_table are made for at least so many keys a request: lengths can be changed later
};

// One line for SCOPED_TRACE.
std::string to_string(const AttentionSpec& spec);

// The params of a problem with its sizes and strides, but no memory: all pointers are null.
AttentionParams attention_layout(const AttentionSpec& spec);

// A spec drawn from `rng`: 1 to 4 requests whose lengths sit on and beside the edges of pages and blocks (0, 1, page +-
// 1, 64 +- 1, ... up to `max_seqlen_k`), with prefill, extend and decode mixed, and every option of AttentionSpec on
// now and then. head_dim (= head_dim_v) comes from `head_dims`; page_size is one of 0 (contiguous), 1, 3, 16, 32, 64,
// 128, 256.
AttentionSpec random_attention_spec(std::mt19937_64& rng, std::span<const int> head_dims, int max_seqlen_k = 300);

// A kernel's output, in float32 and without padding.
struct AttentionResult {
  int num_heads = 0;
  int head_dim_v = 0;
  std::vector<float> out;  // [total_q, num_heads, head_dim_v]
  std::vector<float> lse;  // [num_heads, total_q]
};

// How far a result is from another one.
struct AttentionDifference {
  double max_out = 0.0;  // largest |out - expected|; infinite when one is NaN or infinite and the other is not
  double max_lse = 0.0;  // largest |lse - expected|; likewise, but -inf equals -inf
  std::string worst;     // the places of both, with the values, for the message of a failed test
};

AttentionDifference compare(const AttentionResult& result, const AttentionResult& expected);

// The buffers of one problem. The pages lie shuffled in a pool half as large again as needed. NaN fills what no kernel
// may use: unused pages, slots past a sequence's end, padding, the output. Page-table entries past a row's end are
// 2147480000, so a kernel that follows one crashes. Moves, does not copy; params() points into the object's memory.
class AttentionProblem {
 public:
  explicit AttentionProblem(const AttentionSpec& spec);

  const AttentionSpec& spec() const { return spec_; }
  const AttentionParams& params() const { return params_; }

  // What was last written to params().out and softmax_lse.
  AttentionResult result() const;
  // Fills the output with NaN again.
  void clear_output();
  // False when a kernel wrote between the rows of the output.
  bool padding_intact() const;

  // Runs reference_attention on the same inputs with a float32 output of its own, on stream.pool's threads if there are
  // any.
  AttentionResult run_reference(const Stream& stream = {}) const;

  // The memory behind the pointers of params(), empty where one is null: for copies of a problem on other devices.
  struct Memory {
    std::span<const std::byte> q, k, v, out, softmax_lse, cu_seqlens_q, cache_seqlens, cu_seqlens_k, page_table, sinks;
    std::span<const std::byte> q_descale, k_descale, v_descale;
  };
  Memory memory() const;

  // The numbers themselves, as rounded to their dtypes, independent of how they are laid out.
  float query(int request, int i, int head, int d) const;
  float key(int request, int j, int head_kv, int d) const;
  float value(int request, int j, int head_kv, int d) const;

 private:
  void make_lengths();
  void make_tensors(std::mt19937_64& rng);
  void make_page_table(std::mt19937_64& rng);
  void scatter(const std::vector<float>& rows, int dim, int64_t page_stride, int64_t row_stride, Buffer& storage);

  AttentionSpec spec_;
  AttentionParams params_;  // attention_layout() and the pointers
  std::vector<int32_t> cu_seqlens_q_;
  std::vector<int32_t> cu_seqlens_k_;   // of the storage: contiguous requests have a gap of NaN rows behind them
  std::vector<int64_t> first_key_row_;  // of each request in keys_ and values_
  std::vector<int32_t> cache_seqlens_;
  std::vector<int32_t> page_table_;
  std::vector<float> queries_;  // [total_q, num_heads, head_dim]
  std::vector<float> keys_;     // [sum of seqlens_k, num_heads_kv, head_dim]
  std::vector<float> values_;   // [sum of seqlens_k, num_heads_kv, head_dim_v]
  std::vector<float> sinks_;
  std::vector<float> q_descale_, k_descale_, v_descale_;
  Buffer q_, k_, v_, out_, lse_;
};

}  // namespace onepass
