#include "attention/cpu/flash_plan.h"

#include <algorithm>

#include "attention/cpu/flash_tile.h"

namespace onepass::cpu {
namespace {

// Splits shorter than this cost more in merging than they win by sharing.
constexpr int64_t kMinSplitKeys = 256;

int64_t floor_to(int64_t value, int64_t unit) {
  const int64_t quotient = value / unit - (value % unit < 0 ? 1 : 0);
  return quotient * unit;
}

// The ends of a range of keys' parts, ascending; the last is its end.
std::vector<int64_t> split_ends(const AttentionParams& p, int64_t begin, int64_t end, int automatic_splits) {
  std::vector<int64_t> ends;
  int64_t size = end - begin;
  int64_t next = end;
  if (p.split_size > 0) {
    size = p.split_size;
    next = floor_to(begin, size) + size;  // at multiples of the size, wherever the range begins
  } else {
    const int64_t splits = p.num_splits > 0 ? p.num_splits : automatic_splits;
    if (splits > 1) {
      size = (end - begin + splits - 1) / splits;
      if (p.num_splits == 0) size = std::max(size, kMinSplitKeys);
      next = begin + size;
    }
  }
  for (; next < end; next += size) ends.push_back(next);
  ends.push_back(end);
  return ends;
}

}  // namespace

KeyRange visible_keys(const AttentionParams& p, int request, int64_t token) {
  const int64_t seqlen_q = p.cu_seqlens_q[request + 1] - p.cu_seqlens_q[request];
  const int64_t seqlen_k = p.cache_seqlens[request];
  const int64_t position = seqlen_k - seqlen_q + token;
  KeyRange range{0, seqlen_k - 1};
  if (p.causal) range.last = std::min(range.last, position);
  if (p.window_left >= 0) range.first = std::max(range.first, position - p.window_left);
  if (p.window_right >= 0) range.last = std::min(range.last, position + p.window_right);
  if (p.attention_chunk > 0) {
    const int64_t chunk = floor_to(position, p.attention_chunk);
    range.first = std::max(range.first, chunk);
    range.last = std::min(range.last, chunk + p.attention_chunk - 1);
  }
  return range;
}

// Where the other way (flash_direct.inl) was measured to be faster it stays: sums of the output or tokens that crowd
// the L1 cache (64 rows of 128: 0.70 of a plain read, the stream 0.59; 32 KV heads of 128: 0.87, the stream 0.74), and
// tokens of less than 512 bytes. And for batch-invariant rows, which must go one way however many share an item: the
// stream takes few.
bool can_stream(const AttentionParams& p, const FlashItem& item) {
  constexpr int kMaxOutput = 5120;  // float32: 20 KiB
  constexpr int kMinToken = 256, kMaxToken = 2048;
  if (!item.direct || p.batch_invariant || item.rows < 1 || item.rows > 8) return false;
  const int heads = item.heads;
  return heads % kStreamHeads[item.rows] == 0 && heads * item.rows <= kMaxStreamRows &&
         heads * item.rows * p.head_dim_v <= kMaxOutput && heads * p.head_dim >= kMinToken &&
         heads * p.head_dim <= kMaxToken && heads * p.head_dim_v <= kMaxToken && p.head_dim % 32 == 0 &&
         p.head_dim_v % 32 == 0;
}

FlashPlan plan_flash_attention(const AttentionParams& p, int num_threads) {
  const int group = p.num_heads / p.num_heads_kv;
  // One item for each tile and KV head, before splitting.
  std::vector<FlashItem> tiles;
  for (int request = 0; request < p.batch; ++request) {
    const int64_t seqlen_q = p.cu_seqlens_q[request + 1] - p.cu_seqlens_q[request];
    const int64_t rows = seqlen_q * group;
    for (int64_t first = 0; first < rows; first += kMaxTileRows) {
      const int count = static_cast<int>(std::min<int64_t>(kMaxTileRows, rows - first));
      // Both ends of the visible range grow with the token.
      const KeyRange of_first = visible_keys(p, request, first / group);
      const KeyRange of_last = visible_keys(p, request, (first + count - 1) / group);
      // Where it must not matter which rows share the item, tiles lie on a grid, and all go the way of the few.
      const int64_t begin = p.batch_invariant ? floor_to(of_first.first, p.split_size) : of_first.first;
      const int64_t end = std::max(begin, of_last.last + 1);
      const bool direct = p.batch_invariant || rows <= kMaxDirectRows;
      const int heads = direct ? p.num_heads_kv : 1;
      for (int head_kv = 0; head_kv < p.num_heads_kv; head_kv += heads) {
        tiles.push_back({.request = request,
                         .head_kv = head_kv,
                         .heads = heads,
                         .first_row = first,
                         .rows = count,
                         .direct = direct,
                         .key_begin = begin,
                         .key_end = end});
      }
    }
  }
  FlashPlan plan;
  // An item for each thread at least; a tile is cut along its keys where there are fewer. (Two for each would even out
  // unequal threads, but every item begins with a tile that nobody has asked for ahead: 4% of a decode.)
  const int64_t wanted = num_threads;
  const int64_t count = std::max<int64_t>(1, static_cast<int64_t>(tiles.size()));
  const int automatic_splits = static_cast<int>((wanted + count - 1) / count);
  for (const FlashItem& tile : tiles) {
    const int tile_rows = tile.rows * tile.heads;
    plan.max_item_rows = std::max(plan.max_item_rows, tile_rows);
    const std::vector<int64_t> ends = split_ends(p, tile.key_begin, tile.key_end, automatic_splits);
    if (ends.size() == 1) {
      plan.items.push_back(tile);
      continue;
    }
    plan.merges.push_back({tile, static_cast<int>(ends.size())});
    plan.merges.back().item.partial = plan.partial_rows;
    int64_t begin = tile.key_begin;
    for (int64_t end : ends) {
      FlashItem part = tile;
      part.key_begin = begin;
      part.key_end = end;
      part.partial = plan.partial_rows;
      plan.partial_rows += tile_rows;
      plan.items.push_back(part);
      begin = end;
    }
  }
  const auto cost = [](const FlashItem& item) {
    return int64_t{item.rows} * item.heads * (item.key_end - item.key_begin);
  };
  std::stable_sort(plan.items.begin(), plan.items.end(),
                   [&](const FlashItem& a, const FlashItem& b) { return cost(a) > cost(b); });
  return plan;
}

}  // namespace onepass::cpu
