// From the number of a work item to rows, keys and places; and the ticket counter that hands the numbers out.
#pragma once

#include "attention/cuda/portable/masks.cuh"

namespace onepass::portable {

struct WorkItem {
  int request = 0;
  int head_kv = 0;
  int first_row = 0;       // packed
  int rows = 0;            // of them, at least 1
  int q_begin = 0;         // row of q where the request begins
  int first_position = 0;  // of the request's first query token
  int seqlen_k = 0;
  KeyRange keys;
  int parts = 1;
  int slot = 0;                         // of this part's result
  int first_slot = 0;                   // of the tile's first part; those between are num_heads_kv apart
  const int32_t* page_table = nullptr;  // the request's row of it; null: contiguous
  const char* k = nullptr;              // the head's keys: of page 0, or of the request's first row
  const char* v = nullptr;

  // Items are numbered request by request, and within one KV head by KV head: blocks that run at the same time share
  // keys in the L2 cache, and every head ends with its shortest tile.
  __device__ WorkItem(const KernelParams& p, int number) {
    const WorkUnit any = p.units[number / p.num_heads_kv];
    const int local = number - any.request_first_unit * p.num_heads_kv;
    head_kv = local / any.request_units;
    const WorkUnit unit = p.units[any.request_first_unit + local % any.request_units];
    request = unit.request;
    first_row = unit.first_row;
    keys = {unit.key_begin, unit.key_end};
    parts = unit.parts;
    first_slot = unit.tile_part * p.num_heads_kv + head_kv;
    slot = first_slot + unit.part * p.num_heads_kv;
    q_begin = p.cu_seqlens_q[request];
    const int seqlen_q = p.cu_seqlens_q[request + 1] - q_begin;
    seqlen_k = p.cache_seqlens[request];
    first_position = seqlen_k - seqlen_q;
    rows = min(p.tile_rows, seqlen_q * static_cast<int>(p.group.divisor) - first_row);
    const int64_t first_key = p.page_table != nullptr ? 0 : p.cu_seqlens_k[request];
    if (p.page_table != nullptr) page_table = p.page_table + request * p.page_table_stride;
    k = static_cast<const char*>(p.k) + 2 * (first_key * p.k_row_stride + head_kv * p.k_head_stride);
    v = static_cast<const char*>(p.v) + 2 * (first_key * p.v_row_stride + head_kv * p.v_head_stride);
  }

  // Keys that row r of the tile sees.
  __device__ KeyRange visible(const KernelParams& p, int row) const {
    return visible_keys(p, first_position + divide(first_row + row, p.group), seqlen_k);
  }
};

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
// find none sets it back to zero for the next launch.
class Tickets {
 public:
  __device__ explicit Tickets(const KernelParams& p)
      : header_(p.header),
        count_(p.header->num_units * p.num_heads_kv),
        counted_(count_ > static_cast<int>(gridDim.x)) {}

  __device__ int count() const { return count_; }

  // For thread 0; the others get a number that means nothing. Asked for early, as the answer takes a microsecond.
  __device__ int take() const {
    return counted_ && threadIdx.x == 0 ? gridDim.x + atomicAdd(&header_->ticket, 1) : count_;
  }
  __device__ void leave() const {
    if (threadIdx.x != 0 || !counted_) return;
    __threadfence();
    if (atomicAdd(&header_->done, 1) == gridDim.x - 1) {
      header_->ticket = 0;
      header_->done = 0;
    }
  }

 private:
  PlanHeader* header_;
  int count_;
  bool counted_;
};

}  // namespace onepass::portable
