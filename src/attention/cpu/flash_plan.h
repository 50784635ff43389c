// How a call is cut into pieces of work: pure arithmetic on lengths and masks.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/attention_params.h"

namespace onepass::cpu {

// Query rows of one tile at most. Enough that bringing a tile of K and V into scratch (about 4,000 cycles) is little
// beside multiplying with it (1,000 cycles a row), few enough that causal tiles waste little on keys that only their
// last rows see.
inline constexpr int kMaxTileRows = 96;

// Keys that a token of a request sees: first..last, empty when first > last.
struct KeyRange {
  int64_t first = 0;
  int64_t last = -1;
};
KeyRange visible_keys(const AttentionParams& params, int request, int64_t token);

// The rows first_row .. first_row + rows - 1 of one request (row = token * group + query head within the group) in each
// of `heads` KV heads, over the keys key_begin .. key_end - 1. Decoding takes all KV heads in one item, because for one
// token their keys lie side by side: memory is then read in its own order.
struct FlashItem {
  int request = 0;
  int head_kv = 0;  // the first
  int heads = 1;
  int64_t first_row = 0;
  int rows = 0;
  bool direct = false;  // K and V are read where they lie
  int64_t key_begin = 0;
  int64_t key_end = 0;
  int64_t partial = -1;  // where the unfinished result of its rows * heads rows goes; -1: this is their only part
};

// The parts of one tile that are merged: `count` partial results of `rows` rows, one after the other from row `partial`
// on.
struct FlashMerge {
  FlashItem item;  // of the first part
  int count = 0;
};

struct FlashPlan {
  std::vector<FlashItem> items;  // the longest first
  std::vector<FlashMerge> merges;
  int64_t partial_rows = 0;
  int max_item_rows = 0;  // the largest rows * heads
};

// Whether an item may go by flash_stream.inl, where the instruction set has it.
bool can_stream(const AttentionParams& params, const FlashItem& item);

FlashPlan plan_flash_attention(const AttentionParams& params, int num_threads);

}  // namespace onepass::cpu
