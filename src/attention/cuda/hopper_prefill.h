// What the instantiations of the Hopper prefill kernel share with the code that chooses among them.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <span>

#include "attention/cuda/fast_divide.h"
#include "attention/cuda/hopper_prefill_plan.h"
#include "base/status.h"

namespace onepass::hopper {

// K or V, for kernels that find rows themselves. Strides are in pieces of 16 bytes, of which there are fewer than 2^32.
struct PrefillRows {
  const void* data = nullptr;
  uint32_t page_stride = 0;
  uint32_t row_stride = 0;
  uint32_t head_stride = 0;
};

// Blocks of keys in a part, or about that: it costs as much to write and to merge it.
constexpr int kPrefillPartBlocks = 4;

struct PrefillArgs {
  PrefillPlan* plan = nullptr;
  const PrefillEntry* entries = nullptr;
  const int32_t* page_table = nullptr;  // null: contiguous
  int64_t page_table_stride = 0;
  int32_t page_shift = 0;   // log2(page_size), where the copy engine reads pages, as are the next five
  int32_t page_mask = 0;    // page_size - 1
  int32_t window_mask = 0;  // 32 * page_size - 1; contiguous: INT32_MAX, as nothing is looked up
  int32_t box_rows = 0;     // of K and V that one copy brings
  int32_t box_shift = 0;    // log2(box_rows)
  int32_t boxes = 0;        // of a block
  FastDivide page_size;     // where rows are gathered, as are
  PrefillRows k_rows;
  PrefillRows v_rows;
  void* out = nullptr;
  int64_t out_row_stride = 0;
  int64_t out_head_stride = 0;
  float* softmax_lse = nullptr;
  // With the keys of a tile cut into parts (at most so many), the results of heads part * num_heads to
  // (part + 1) * num_heads - 1 are those of a part: LSE, and [parts * num_heads, total_q, head_dim_v] outputs.
  int32_t parts = 1;
  float* part_out = nullptr;
  const float* sinks = nullptr;
  int32_t total_q = 0;
  int32_t num_heads = 0;
  int32_t heads_per_kv = 0;
  float softmax_scale = 0.0f;
  float softcap = 0.0f;    // with launch_softcap, as is
  float cap_scale = 0.0f;  // 2 log2(e) softmax_scale / softcap
  KeyMask mask;
};

struct PrefillMaps {
  CUtensorMap q;
  CUtensorMap k;
  CUtensorMap v;
  CUtensorMap out;
};

// One instantiation.
struct PrefillKernel {
  int head_dim = 0;
  int head_dim_v = 0;
  int rows = 0;           // of a tile
  int keys = 0;           // of a block; a page has a multiple of so many, or a divisor, unless it gathers
  bool paired = false;    // causal only: thread blocks share K and V in pairs, each bringing half of a block to both
  int shortest = 0;       // query tokens that requests have on average, at least; 0: any
  int longest = 0;        // query tokens of the longest request that it is for; 0: any
  int smallest_page = 8;  // rows of a page, at least, which are a power of two
  bool gathers = false;   // rows, from pages of any size
  using Launch = cudaError_t (*)(const PrefillArgs& args, const PrefillMaps& maps, int blocks, CUstream_st* stream);
  Launch launch = nullptr;
  Launch launch_softcap = nullptr;
};

// All of them, the better of two that serve the same problem first.
std::span<const PrefillKernel> prefill_kernels_bf16();
std::span<const PrefillKernel> prefill_kernels_fp16();

}  // namespace onepass::hopper
