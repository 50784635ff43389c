#include "engine/batch.h"

#include <algorithm>

namespace onepass {

bool Batch::is_decode() const {
  if (num_requests() != num_tokens() || static_cast<int>(output_rows.size()) != num_tokens()) return false;
  for (int i = 0; i < num_tokens(); ++i) {
    if (output_rows[i] != i) return false;
  }
  return true;
}

void Batch::clear() {
  input_ids.clear();
  positions.clear();
  out_cache_loc.clear();
  cu_seqlens_q.assign(1, 0);
  cache_seqlens.clear();
  request_slots.clear();
  output_rows.clear();
  max_seqlen_q = 0;
}

void Batch::add(int slot, const int32_t* tokens, int count, int first_position, int num_outputs,
                const RequestTable& table, int page_size) {
  const int begin = num_tokens();
  input_ids.insert(input_ids.end(), tokens, tokens + count);
  for (int i = 0; i < count; ++i) {
    positions.push_back(first_position + i);
    out_cache_loc.push_back(table.token_slot(slot, first_position + i, page_size));
  }
  for (int i = count - num_outputs; i < count; ++i) output_rows.push_back(begin + i);
  cu_seqlens_q.push_back(begin + count);
  cache_seqlens.push_back(first_position + count);
  request_slots.push_back(slot);
  max_seqlen_q = std::max(max_seqlen_q, count);
}

int Batch::num_leading_decodes() const {
  int count = 0;
  while (count < num_requests() && cu_seqlens_q[count + 1] == count + 1) ++count;
  return count;
}

// All of its tokens lie in one slot of page 0: what its first ones see is nothing, and the last one sees any of them.
void Batch::add_dummy(int num_tokens) {
  input_ids.insert(input_ids.end(), num_tokens, 0);
  positions.insert(positions.end(), num_tokens, 0);
  out_cache_loc.insert(out_cache_loc.end(), num_tokens, 0);
  cu_seqlens_q.push_back(this->num_tokens());
  cache_seqlens.push_back(num_tokens > 0 ? 1 : 0);
  request_slots.push_back(-1);
}

void Batch::pad(const StepShape& shape) {
  if (shape.is_decode()) {
    while (num_requests() < shape.num_requests) {
      add_dummy(1);
      output_rows.push_back(num_requests() - 1);
    }
  } else {
    add_dummy(shape.num_tokens - num_tokens());
    while (num_requests() < shape.num_requests) add_dummy(0);
    output_rows.resize(shape.num_requests, 0);
  }
  max_seqlen_q = shape.is_decode() ? 1 : shape.num_tokens;
}

AttentionBatch Batch::attention() const {
  return {.num_requests = num_requests(),
          .num_tokens = num_tokens(),
          .max_seqlen_q = max_seqlen_q,
          .num_leading_decodes = num_leading_decodes(),
          .cu_seqlens_q = cu_seqlens_q.data(),
          .cache_seqlens = cache_seqlens.data(),
          .request_slots = request_slots.data(),
          .positions = positions.data(),
          .out_cache_loc = out_cache_loc.data()};
}

}  // namespace onepass
