// The sizes of a prefill tile, and what lies in shared memory beside its rows.
#pragma once

#include "attention/cuda/portable/row_loader.cuh"

namespace onepass::portable {

// What a warp knows of its items. In shared memory rather than in registers, of which the loop leaves none.
struct WarpView {
  KeyMemory memory;  // of the item that is loaded
  ScoreScale scale;  // of the item at work
  KeyRange some;     // keys that some of the warp's rows see
  KeyRange all;      // keys that all of them see
};

// Of 16 rows, for each warp, where there are enough: with two of them every fragment of K and V serves two products;
// with wider outputs the registers are too few.
template <int kDimV>
inline constexpr int kMostRowTiles = kDimV <= 128 ? 2 : 1;

template <int kDim, int kDimV, int kRowTilesOfWarp>
struct PrefillTile {
  static constexpr int kRowTiles = kRowTilesOfWarp;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarps * kWarpRows;
  // Twice as many keys where registers allow: half of the barriers, half of the maxima.
  static constexpr int kKeys = kDimV <= 64 ? 2 * kBlockKeys : kBlockKeys;
  static constexpr int kLoads = kKeys / kBlockKeys;  // of 16 rows, for each warp
  static constexpr int kQueryBytes = kRows * SharedRows<kDim>::kStride;
  static constexpr int kKeyBytes = kKeys * SharedRows<kDim>::kStride;
  static constexpr int kValueBytes = kKeys * SharedRows<kDimV>::kStride;
  // At most 96 KiB: two blocks an SM on an H100, one on a card with 100 KiB.
  static constexpr int kStages = kQueryBytes + 2 * (kKeyBytes + kValueBytes) <= 98304 ? 2 : 1;
  static constexpr int kTileBytes = kQueryBytes + kStages * (kKeyBytes + kValueBytes);
  static_assert(kTileBytes <= 98304);
  // Three items: thread 0 announces the next one when other warps may still be at the end of the one before.
  struct Control {
    WorkItem items[3];
    int numbers[3];  // of the item after each
    int count;       // of all items
    WarpView views[kWarps];
    int last;
  };
  static constexpr int kSharedBytes = kTileBytes + sizeof(Control);
};

}  // namespace onepass::portable
