// The arithmetic of the prefill kernel: one warp's rows and one block of keys after the other.
#pragma once

#include "attention/cuda/portable/mma.cuh"
#include "attention/cuda/portable/shared_rows.cuh"
#include "attention/cuda/portable/work_item.cuh"

namespace onepass::portable {

// What a warp knows of its items. In shared memory rather than in registers, of which the loop leaves none.
struct WarpView {
  KeyMemory memory;  // of the item that is loaded
  ScoreScale scale;  // of the item at work
  KeyRange some;     // keys that some of the warp's rows see
  KeyRange all;      // keys that all of them see
};

template <int kDim, int kDimV>
struct PrefillTile {
  static constexpr int kRowTiles = kDimV <= 128 ? 2 : 1;  // of 16 rows, for each warp
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

// In registers. Rows and columns lie on the lanes as mma.cuh says.
template <typename T, int kDim, int kDimV>
struct PrefillRows {
  using Tile = PrefillTile<kDim, kDimV>;
  using RowsK = SharedRows<kDim>;
  using RowsV = SharedRows<kDimV>;
  static constexpr int kRowTiles = Tile::kRowTiles;
  static constexpr int kKeys = Tile::kKeys;
  static constexpr int kScoreTiles = kKeys / 8;
  static constexpr int kOutTiles = kDimV / 8;

  float scores[kRowTiles][kScoreTiles][4];
  uint32_t weights[kRowTiles][kKeys / 16][4];  // pairs of them, as the product with V takes them
  float out[kRowTiles][kOutTiles][4];
  float max[kRowTiles][2];  // of q.k, before the scale; what the weights are relative to
  float sum[kRowTiles][2];  // of this lane's keys

  __device__ void reset() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      max[m][0] = max[m][1] = minus_infinity();
      sum[m][0] = sum[m][1] = 0.0f;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) out[m][n][0] = out[m][n][1] = out[m][n][2] = out[m][n][3] = 0.0f;
    }
  }

  // scores = Q K^T.
  __device__ void multiply_keys(uint32_t queries, uint32_t keys, int lane) {
    const uint32_t query_address = queries + RowsK::offset(lane & 15, lane >> 4);
    const uint32_t key_address = keys + RowsK::offset((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
        scores[m][n][0] = scores[m][n][1] = scores[m][n][2] = scores[m][n][3] = 0.0f;
      }
    }
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        load_matrices(a[m], RowsK::piece_pair(query_address, k) + 16 * m * RowsK::kStride);
      }
#pragma unroll
      for (int n = 0; n < kScoreTiles / 2; ++n) {
        uint32_t b[4];
        load_matrices(b, RowsK::piece_pair(key_address, k) + 16 * n * RowsK::kStride);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k16<T>(scores[m][2 * n], a[m], b[0], b[1]);
          mma_m16n8k16<T>(scores[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  __device__ void transform(const ScoreScale& scale) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[m][n][j] = scale.transform(scores[m][n][j]);
      }
    }
  }

  // Takes away the scores that the rows from the tile's `first_row` on do not see of the block at `key`. Causal masks
  // cut blocks at their end alone, others also at their beginning.
  __device__ void mask(const KernelParams& p, const WorkItem& item, int first_row, int key, bool at_begin, int lane) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = first_row + 16 * m + 8 * half + lane / 4;
        const KeyRange row = visible_keys(p, item, ::min(r, item.rows - 1));
        const int at = key + 2 * (lane % 4);
        const int begin = ::max(row.begin, item.key_begin) - at, end = ::min(row.end, item.key_end) - at;
#pragma unroll
        for (int i = 0; i < 2 * kScoreTiles; ++i) {
          if (8 * (i / 2) + i % 2 >= end) scores[m][i / 2][2 * half + i % 2] = minus_infinity();
        }
        if (!at_begin) continue;
#pragma unroll
        for (int i = 0; i < 2 * kScoreTiles; ++i) {
          if (8 * (i / 2) + i % 2 < begin) scores[m][i / 2][2 * half + i % 2] = minus_infinity();
        }
      }
    }
  }

  // From scores to weights, in the order that gives the most independent instructions: the maxima of all rows, one
  // branch, all exponentials.
  __device__ void softmax(float scale, float max_growth) {
    float block_max[kRowTiles][2];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x[4];  // four chains
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
          const float pair = fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]);
          x[n % 4] = n < 4 ? pair : fmaxf(x[n % 4], pair);
        }
        block_max[m][half] = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
      }
    }
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          block_max[m][half] = fmaxf(block_max[m][half], __shfl_xor_sync(kFullWarp, block_max[m][half], distance));
        }
      }
    }
    // The output is rescaled only when a maximum grew by more than a factor of 2^max_growth since the last time (or was
    // -inf until now). The weights are then at most that instead of 1, as is their sum.
    bool grew[kRowTiles];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      grew[m] = __any_sync(kFullWarp, (block_max[m][0] - max[m][0]) * scale > max_growth ||
                                          (block_max[m][1] - max[m][1]) * scale > max_growth);
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      if (grew[m]) rescale(m, block_max[m], scale);
    }

#pragma unroll
    for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float shift = max[m][half] == minus_infinity() ? 0.0f : max[m][half] * scale;
          const float first = exp2_approx(fmaf(scores[m][n][2 * half], scale, -shift));
          const float second = exp2_approx(fmaf(scores[m][n][2 * half + 1], scale, -shift));
          weights[m][n / 2][n % 2 * 2 + half] = pack<T>(first, second);
          sum[m][half] += first + second;
        }
      }
    }
  }

  __device__ void rescale(int m, const float (&block_max)[2], float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float new_max = fmaxf(max[m][half], block_max[half]);
      const float keep = new_max == max[m][half] ? 1.0f : exp2_approx((max[m][half] - new_max) * scale);
      max[m][half] = new_max;
      sum[m][half] *= keep;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
        out[m][n][2 * half] *= keep;
        out[m][n][2 * half + 1] *= keep;
      }
    }
  }

  // out += P V.
  __device__ void multiply_values(uint32_t values, int lane) {
    const uint32_t address = values + RowsV::offset(lane & 15, lane >> 4);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kOutTiles / 2; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, RowsV::piece_pair(address, n) + 16 * k * RowsV::kStride);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k16<T>(out[m][2 * n], weights[m][k], b[0], b[1]);
          mma_m16n8k16<T>(out[m][2 * n + 1], weights[m][k], b[2], b[3]);
        }
      }
    }
  }
};

}  // namespace onepass::portable
