// What a work item says of rows, keys and memory; and the ticket counter that hands the items out.
#pragma once

#include "attention/cuda/portable/masks.cuh"

namespace onepass::portable {

__device__ inline KeyRange keys_of(const WorkItem& item) { return {item.key_begin, item.key_end}; }

// Keys that row r of the item sees.
__device__ inline KeyRange visible_keys(const KernelParams& p, const WorkItem& item, int row) {
  return visible_keys(p, item.first_position + divide(item.first_row + row, p.group), item.seqlen_k);
}

// Where the keys and values of an item's head lie.
struct KeyMemory {
  const int32_t* page_table = nullptr;  // the request's row of it; null: contiguous
  const char* k = nullptr;              // of page 0, or of the request's first row
  const char* v = nullptr;

  KeyMemory() = default;
  __device__ KeyMemory(const KernelParams& p, const WorkItem& item) {
    const int64_t first_key = p.page_table != nullptr ? 0 : p.cu_seqlens_k[item.request];
    if (p.page_table != nullptr) page_table = p.page_table + item.request * p.page_table_stride;
    k = static_cast<const char*>(p.k) + 2 * (first_key * p.k_row_stride + item.head_kv * p.k_head_stride);
    v = static_cast<const char*>(p.v) + 2 * (first_key * p.v_row_stride + item.head_kv * p.v_head_stride);
  }
};

__device__ inline float value_scale(const KernelParams& p, const WorkItem& item) {
  return p.v_descale != nullptr ? p.v_descale[item.request * p.num_heads_kv + item.head_kv] : 1.0f;
}

// The query row and head of a packed row.
struct PackedRow {
  int64_t token = 0;  // row of q, out and softmax_lse
  int head = 0;

  __device__ PackedRow(const KernelParams& p, const WorkItem& item, int row) {
    const int packed = item.first_row + row;
    const int token_of_request = divide(packed, p.group);
    token = item.q_begin + token_of_request;
    head = item.head_kv * static_cast<int>(p.group.divisor) + packed -
           token_of_request * static_cast<int>(p.group.divisor);
  }
};

// Thread blocks take their first item by their own number and the others from a counter. The block that is the last to
// find none sets it back to zero for the next launch. `count` is the number of items.
__device__ inline bool by_ticket(int count) { return count > static_cast<int>(gridDim.x); }

// The number of the next item, `count` or more when there is none. For thread 0; the others get a number that means
// nothing. Asked for early, as the answer takes a microsecond.
__device__ inline int take_ticket(const KernelParams& p, int count) {
  return by_ticket(count) && threadIdx.x == 0 ? gridDim.x + atomicAdd(&p.header->ticket, 1) : count;
}

__device__ inline void leave_tickets(const KernelParams& p, int count) {
  if (threadIdx.x != 0 || !by_ticket(count)) return;
  __threadfence();
  if (atomicAdd(&p.header->done, 1) == static_cast<int>(gridDim.x) - 1) {
    p.header->ticket = 0;
    p.header->done = 0;
  }
}

}  // namespace onepass::portable
