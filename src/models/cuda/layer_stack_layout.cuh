// Who computes what in the kernel for all layers, and where it lies: pure arithmetic, for the host and the device.
//
// A product [rows, cols] goes by tiles of 8 rows (gated: 4 gates and the 4 that they let through), so many neighbouring
// ones to each block; a tile's columns come in units of up to 1,024, each in one slot of the ring.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"
#include "models/cuda/layer_stack_kernel.h"

namespace onepass::layer_stack {

inline constexpr int kWarps = 8;  // that compute
inline constexpr int kConsumers = 32 * kWarps;
inline constexpr int kThreads = kConsumers + 128;  // and one that copies, one that cleans, and two that end at once
// Registers go from one warpgroup to the others.
inline constexpr int kConsumerRegisters = 200, kOtherRegisters = 104;
inline constexpr int kMatrixRows = 8;  // of x, or query heads of a KV head, in one matrix instruction
inline constexpr int kMostRows = 4;    // requests: from 8 on the layers one by one are as fast
inline constexpr int kTileRows = 8;
inline constexpr int kChunk = 64;  // columns that a warp multiplies at a time
inline constexpr int kUnitChunks = 16;
inline constexpr int kKeys = 64;  // keys of a unit of K or V
inline constexpr int kPadding = 64;
// 8 rows of 1,024 columns, each with its padding, or 64 keys of 128 dimensions in two panels of 64.
inline constexpr int kPanelBytes = kKeys * 128;
inline constexpr int kSlotBytes = 17 * 1024;
static_assert(kTileRows * (kUnitChunks * kChunk * 2 + kPadding) <= kSlotBytes && 2 * kPanelBytes <= kSlotBytes);
// Blocks of kKeys that a thread block attends at least: fewer parts to merge for 1,000 keys.
inline constexpr int kLeastKeyBlocks = 2;

// A unit of its own before each product that a norm precedes: the norm's weights, and those of the heads' norms.
ONEPASS_HOST_DEVICE inline int norm_unit_bytes(const StackShape& s) { return (s.hidden_size + 2 * s.head_dim) * 4; }

struct Product {
  int rows = 0;  // of the weights
  int cols = 0;
  bool gated = false;
  int tiles = 0;
  int of_block = 0;  // tiles of a block; the last ones may have fewer, or none
  // Units of a tile, and their chunks: `unit_chunks`, the last one's what is left.
  int units = 0;
  int unit_chunks = 0;
  int last_chunks = 0;

  Product() = default;
  ONEPASS_HOST_DEVICE Product(int num_rows, int num_cols, bool is_gated, int blocks)
      : rows(num_rows), cols(num_cols), gated(is_gated), tiles(num_rows / kTileRows) {
    of_block = (tiles + blocks - 1) / blocks;
    if (gated) of_block = (of_block + 1) / 2 * 2;  // whole pieces of 8 outputs
    const int chunks = cols / kChunk;
    units = (chunks + kUnitChunks - 1) / kUnitChunks;
    unit_chunks = (chunks + units - 1) / units;
    last_chunks = chunks - (units - 1) * unit_chunks;
  }
  ONEPASS_HOST_DEVICE int chunks_of(int unit) const { return unit + 1 < units ? unit_chunks : last_chunks; }
  ONEPASS_HOST_DEVICE int tiles_of(int block) const {
    const int left = tiles - block * of_block;
    return left < 0 ? 0 : left < of_block ? left : of_block;
  }
};

// The products of a layer, in their order.
inline constexpr int kQkv = 0, kO = 1, kGateUp = 2, kDown = 3, kProducts = 4;

struct Products {
  Product of[kProducts];

  ONEPASS_HOST_DEVICE Products(const StackShape& s, int blocks) {
    const int q_size = s.num_heads * s.head_dim;
    of[kQkv] = Product(q_size + 2 * s.num_kv_heads * s.head_dim, s.hidden_size, false, blocks);
    of[kO] = Product(s.hidden_size, q_size, false, blocks);
    of[kGateUp] = Product(2 * s.intermediate_size, s.hidden_size, true, blocks);
    of[kDown] = Product(s.hidden_size, s.intermediate_size, false, blocks);
  }
  ONEPASS_HOST_DEVICE int most_tiles() const {
    int most = 0;
    for (const Product& product : of) most = product.of_block > most ? product.of_block : most;
    return most;
  }
  ONEPASS_HOST_DEVICE int most_cols() const {
    int most = 0;
    for (const Product& product : of) most = product.cols > most ? product.cols : most;
    return most;
  }
};

// Rows of activations as blocks write them: each block's outputs of all rows side by side in lines of 128 bytes that
// are its own. (Where 16 blocks write one line the last number is there after 2.4 us, where one does after 0.4.)
struct BlockRows {
  int64_t at = 0;  // in a set of the exchange
  int64_t block_stride = 0;
  int64_t row_stride = 0;
  int64_t bytes = 0;

  BlockRows() = default;
  ONEPASS_HOST_DEVICE BlockRows(int64_t from, int max_rows, int row_bytes, int blocks)
      : at(from),
        block_stride((max_rows * row_bytes + 127) / 128 * 128),
        row_stride(row_bytes),
        bytes(blocks * block_stride) {}
};

// One set of the exchange, in bytes.
struct ExchangeSet {
  BlockRows qkv;
  BlockRows mid, out;  // the residual stream after attention and after the layer, float32
  BlockRows inner;
  int64_t attention;  // [max_rows][q_size]: lines of one block each anyway
  // Of a request whose keys several blocks share: two for each block, [group][head_dim] outputs and then [group] of
  // maximum, sum, 0 and 0, float32.
  int64_t parts, part_bytes;
  int64_t bytes;

  ONEPASS_HOST_DEVICE ExchangeSet(const StackShape& s, int max_rows, int blocks) {
    const Products products(s, blocks);
    const int64_t group = s.num_heads / s.num_kv_heads;
    qkv = BlockRows(0, max_rows, products.of[kQkv].of_block * kTileRows * 2, blocks);
    mid = BlockRows(qkv.bytes, max_rows, products.of[kO].of_block * kTileRows * 4, blocks);
    out = BlockRows(mid.at + mid.bytes, max_rows, products.of[kDown].of_block * kTileRows * 4, blocks);
    inner = BlockRows(out.at + out.bytes, max_rows, products.of[kGateUp].of_block * kTileRows / 2 * 2, blocks);
    attention = inner.at + inner.bytes;
    part_bytes = (group * s.head_dim * 4 + group * 16 + 127) / 128 * 128;
    parts = (attention + int64_t{max_rows} * s.num_heads * s.head_dim * 2 + 127) / 128 * 128;
    bytes = parts + blocks * 2 * part_bytes;
  }
};
inline constexpr int kSets = 3;
// Before the sets: the number of the next launch's first set, and the rows of the last three launches, the latest
// first.
inline constexpr int kStateBytes = 128;

// What a thread block attends of a layer: of KV head `head`, blocks begin .. end - 1 of all requests' blocks of 64
// keys, one request's after the other's. A request has one block at least, for its new key's sake.
struct AttentionShare {
  int head = 0;
  int begin = 0, end = 0;
  int quota = 1;  // blocks of a worker

  // Keys before the new one that it sees: [low, high).
  ONEPASS_HOST_DEVICE static int low_key(int seqlen, int window_left) {
    return window_left >= 0 && seqlen - 1 - window_left > 0 ? seqlen - 1 - window_left : 0;
  }
  ONEPASS_HOST_DEVICE static int key_blocks(int seqlen, int window_left) {
    const int blocks = (seqlen - 1 + kKeys - 1) / kKeys - low_key(seqlen, window_left) / kKeys;
    return blocks < 1 ? 1 : blocks;
  }

  ONEPASS_HOST_DEVICE AttentionShare(const int* seqlens, int rows, int window_left, int num_kv_heads, int block,
                                     int blocks) {
    int all = 0;
    for (int row = 0; row < rows; ++row) all += key_blocks(seqlens[row], window_left);
    const int workers = blocks / num_kv_heads, worker = block / num_kv_heads;
    head = block % num_kv_heads;
    quota = (all + workers - 1) / workers;
    if (quota < kLeastKeyBlocks) quota = kLeastKeyBlocks;
    if (worker >= workers) return;
    begin = worker * quota < all ? worker * quota : all;
    end = begin + quota < all ? begin + quota : all;
  }
};

// One request's part of a share.
struct AttentionItem {
  int row = 0;
  int first_block = 0, end_block = 0;  // of the request's keys
  int low = 0, high = 0;               // keys that are seen before the new one
  bool is_last = false;                // has the new key too
  int part = 0, parts = 1;             // of the request's keys
  int slot = 0;                        // which of the block's two parts of the exchange
  int first_worker = 0;                // that has part 0, and in which slot
  int first_slot = 0;
};

// Goes over the items of a share, in order: while (items.next()) ... items.item.
struct AttentionItems {
  const AttentionShare& share;
  const int* seqlens;
  int rows;
  int window_left;
  AttentionItem item = {};
  int row = 0, offset = 0;

  ONEPASS_HOST_DEVICE AttentionItems(const AttentionShare& of, const int* lengths, int num_rows, int window)
      : share(of), seqlens(lengths), rows(num_rows), window_left(window) {}

  ONEPASS_HOST_DEVICE bool next() {
    for (; row < rows; ++row) {
      const int blocks = AttentionShare::key_blocks(seqlens[row], window_left), first = offset;
      const int begin = share.begin > first ? share.begin : first;
      const int end = share.end < first + blocks ? share.end : first + blocks;
      offset += blocks;
      if (begin >= end) continue;
      const int low = AttentionShare::low_key(seqlens[row], window_left), high = seqlens[row] - 1;
      item = AttentionItem();
      item.row = row;
      const int of_keys = (high + kKeys - 1) / kKeys;
      item.low = low, item.high = high;
      item.first_block = low / kKeys + begin - first;
      item.end_block = low / kKeys + end - first < of_keys ? low / kKeys + end - first : of_keys;
      if (low == high) item.end_block = item.first_block;  // a window of one: the new key alone
      item.is_last = end == first + blocks;
      if (begin != first || end != first + blocks) {
        item.first_worker = first / share.quota;
        item.parts = (first + blocks - 1) / share.quota - item.first_worker + 1;
        item.part = share.begin / share.quota - item.first_worker;
        item.slot = begin == share.begin ? 0 : 1;
        item.first_slot = first == item.first_worker * share.quota ? 0 : 1;
      }
      ++row;
      return true;
    }
    return false;
  }
};

// The items of a block for all layers with one window, kept in shared memory: they follow from the lengths.
struct ItemList {
  int window_left = -2;  // none yet
  int head = 0;
  int count = 0;
  AttentionItem items[kMostRows];
};

// Dynamic shared memory, in bytes from its 1,024-byte aligned beginning.
struct SharedLayout {
  int ring, x, x_pitch, sums, sums_of_warp, meeting, meeting_pitch, stats, angles, residual, norm_sums, head_norms,
      layers, items, seqlens, tiles, barriers, bytes;

  ONEPASS_HOST_DEVICE SharedLayout(const StackShape& s, int max_rows, int blocks, int ring_slots) {
    const Products products(s, blocks);
    const int group = s.num_heads / s.num_kv_heads;
    ring = 0;
    x = ring + ring_slots * kSlotBytes;
    x_pitch = products.most_cols() * 2 + kPadding;
    sums = x + max_rows * x_pitch;
    sums_of_warp = products.most_tiles() * kTileRows * max_rows * 4;
    meeting = sums + 2 * kWarps * sums_of_warp;
    meeting_pitch = (s.head_dim + 4) * 4;
    stats = meeting + kWarps * group * meeting_pitch;
    angles = stats + kWarps * kMatrixRows * 8;
    residual = angles + max_rows * s.head_dim / 2 * 8;
    norm_sums = residual + products.of[kO].of_block * kTileRows * max_rows * 4;
    head_norms = norm_sums + kWarps * 4;
    layers = (head_norms + 2 * s.head_dim * 4 + 15) / 16 * 16;
    items = layers + s.num_layers * static_cast<int>(sizeof(StackLayer));
    seqlens = items + 2 * static_cast<int>(sizeof(ItemList));
    tiles = seqlens + 2 * kMostRows * 4;
    barriers = (tiles + kProducts * static_cast<int>(sizeof(int)) + 7) / 8 * 8;
    bytes = barriers + (2 * ring_slots + 2) * 8;
  }
};

}  // namespace onepass::layer_stack
