// One step's work in the layout that the forward pass and the attention plan read.
#pragma once

#include <compare>
#include <cstdint>
#include <vector>

#include "attention/attention_backend.h"
#include "kv_cache/request_table.h"

namespace onepass {

// How large a step is: padded steps of one shape differ in nothing but what lies in memory.
struct StepShape {
  int num_tokens = 0;
  int num_requests = 0;

  bool is_decode() const { return num_tokens == num_requests; }
  auto operator<=>(const StepShape&) const = default;
};

// New tokens of several requests, one after the other; request r has tokens cu_seqlens_q[r] .. cu_seqlens_q[r+1]-1.
struct Batch {
  std::vector<int32_t> input_ids;        // [num_tokens]; ~slot: what the request in `slot` has sampled last
  std::vector<int32_t> positions;        // [num_tokens]
  std::vector<int64_t> out_cache_loc;    // [num_tokens]: page * page_size + offset
  std::vector<int32_t> cu_seqlens_q{0};  // [num_requests + 1]
  std::vector<int32_t> cache_seqlens;    // [num_requests]: keys in all, new tokens included
  std::vector<int32_t> request_slots;    // [num_requests]; -1: the dummy request
  std::vector<int32_t> output_rows;      // the tokens whose logits are wanted, not descending; some more than once
  int max_seqlen_q = 0;

  int num_tokens() const { return static_cast<int>(input_ids.size()); }
  int num_requests() const { return static_cast<int>(request_slots.size()); }

  // Every token is a request of its own whose logits are wanted, once.
  bool is_decode() const;

  // Requests of one token at the beginning.
  int num_leading_decodes() const;

  void clear();

  // Appends `count` tokens of the request in `slot`, at positions first_position, ...; its row of `table` holds their
  // pages. The logits of the last `num_outputs` of them are wanted.
  void add(int slot, const int32_t* tokens, int count, int first_position, int num_outputs, const RequestTable& table,
           int page_size);

  // The logits of the last row are wanted once more.
  void repeat_output() { output_rows.push_back(output_rows.back()); }

  // Appends tokens of requests that own page 0, which nobody reads, until the batch has the shape: to a batch of
  // decodes requests of one token; to prompts one request with all the tokens that are missing, and requests without
  // tokens; and output rows up to the number of requests. REQUIRES: `shape` is one that StepGraphs::shape_for() gives.
  void pad(const StepShape& shape);

  AttentionBatch attention() const;

 private:
  void add_dummy(int num_tokens);
};

}  // namespace onepass
