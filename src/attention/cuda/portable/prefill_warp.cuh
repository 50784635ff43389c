// What a warp of the prefill kernel does with an item: its loads, its products, its rows' sums.
#pragma once

#include "attention/cuda/portable/prefill_store.cuh"
#include "attention/cuda/portable/prefill_tile.cuh"
#include "attention/cuda/portable/row_loader.cuh"

namespace onepass::portable {

template <typename T, int kDim, int kDimV, int kRowTiles>
class PrefillWarp {
  using Tile = PrefillTile<kDim, kDimV, kRowTiles>;
  using RowsK = SharedRows<kDim>;
  using RowsV = SharedRows<kDimV>;
  static constexpr int kKeys = Tile::kKeys;
  static constexpr int kScoreTiles = kKeys / 8;
  static constexpr int kOutTiles = kDimV / 8;

 public:
  __device__ PrefillWarp(const KernelParams& p, WarpView& view, char* shared)
      : p_(p),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        queries_(shared_address(shared) + warp_ * Tile::kWarpRows * RowsK::kStride),
        keys_(shared_address(shared) + Tile::kQueryBytes),
        values_(keys_ + Tile::kStages * Tile::kKeyBytes),
        view_(view) {}

  // Loads an item's last keys, with which its work begins, and looks for those before them.
  __device__ void load_first(const WorkItem& item) {
    if (lane_ == 0) view_.memory = KeyMemory(p_, item);
    __syncwarp();
    const bool any = item.key_end > item.key_begin;
    const int key = last_block(item);
    find(item, key);
    if (any) load_keys(item);
    if constexpr (Tile::kStages == 2) {
      if (any) load_values(item);
      find(item, key - kKeys);
      stage_ ^= 1;
    }
    cp_async_commit();
  }

  // The warp's own rows, which no other warp reads; zeros where there are none.
  __device__ void load_queries(const WorkItem& item) {
    using Rows = RowsK;
    constexpr int kPieces = Rows::kPieces;
    constexpr int kTogether = kPieces % 8 == 0 ? kPieces / 8 : 1;  // copies of one row
#pragma unroll 1
    for (int i = 0; i < Tile::kWarpRows * kPieces / 32; i += kTogether) {
      const int r = copied_row<kPieces>(i, lane_);
      const bool real = warp_ * Tile::kWarpRows + r < item.rows;
      const PackedRow row(p_, item, real ? warp_ * Tile::kWarpRows + r : 0);
      const T* const q = static_cast<const T*>(p_.q) + row.token * p_.q_row_stride + row.head * p_.q_head_stride;
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int piece = copied_piece<kPieces>(i + j, lane_);
        cp_async_16_or_zeros(queries_ + Rows::offset(r, piece), q + 8 * piece, real);
      }
    }
    cp_async_commit();
  }

  // REQUIRES: load_first(item), load_queries(item). Calls each of these once, all threads together: `announce` when
  // there has been time for the next item to be found, then `load_next` and `load_next_queries` when the places of that
  // item's first keys and of the warp's queries are free.
  template <typename Announce, typename LoadNext, typename LoadNextQueries>
  __device__ void attend(const WorkItem& item, const Announce& announce, const LoadNext& load_next,
                         const LoadNextQueries& load_next_queries) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      max_[m][0] = max_[m][1] = minus_infinity();
      sum_[m][0] = sum_[m][1] = 0.0f;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) out_[m][n][0] = out_[m][n][1] = out_[m][n][2] = out_[m][n][3] = 0.0f;
    }
    look(item);
    const int first = item.key_begin / kKeys * kKeys;
    const int last = last_block(item);
    if (last <= first) announce();
    if (item.key_end <= item.key_begin) {
      cp_async_wait<0>();
      __syncthreads();
      load_next();
      load_next_queries();
      return;
    }
    for (int key = last; key >= first; key -= kKeys) {
      cp_async_wait<0>();
      __syncthreads();  // the rows of this block are there, and all are done with those of the block before
      const bool matters = key < view_.some.end && key + kKeys > view_.some.begin;
      const int stage = Tile::kStages == 2 ? stage_ ^ 1 : 0;
      if constexpr (Tile::kStages == 2) {
        if (key > first) {
          load_keys(item);
          load_values(item);
          cp_async_commit();
          find(item, key - 2 * kKeys);
          stage_ ^= 1;
        } else {
          load_next();
        }
        if (matters) weigh(item, key, stage);
      } else {
        load_values(item);
        cp_async_commit();
        find(item, key - kKeys);
        if (matters) weigh(item, key, stage);
        cp_async_wait<0>();
        __syncthreads();
        if (key > first) {
          load_keys(item);
          cp_async_commit();
        } else {
          load_next();
        }
      }
      if (matters) multiply_values(stage);
      if (key == last && key > first) announce();
    }
    load_next_queries();
  }

  // The results of the warp's rows: to the output, or to the item's slot. Step by step for all rows together, so that
  // one row's chain of instructions runs beside the others'.
  __device__ void store(const WorkItem& item) {
    const float v_scale = value_scale(p_, item);
    RowResult results[kRowTiles][2];
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) sum_[m][half] += __shfl_xor_sync(kFullWarp, sum_[m][half], distance);
      }
    }
    const bool wants_lse = item.parts > 1 || p_.softmax_lse != nullptr || p_.sinks != nullptr;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        RowResult& result = results[m][half];
        const bool empty = max_[m][half] == minus_infinity();
        result.factor = empty ? 0.0f : __fdividef(v_scale, sum_[m][half]);
        result.row = warp_ * Tile::kWarpRows + 16 * m + 8 * half + lane_ / 4;
        if (wants_lse) {
          result.lse = empty ? minus_infinity() : max_[m][half] * view_.scale.scale * kLn2 + logf(sum_[m][half]);
        }
      }
    }
    const RowStore<T, kDimV, kRowTiles> to(p_, lane_, out_);
    if (item.parts > 1) {
      to.store_parts(item, results);
    } else {
      to.store_rows(item, results);
    }
  }

 private:
  __device__ static int last_block(const WorkItem& item) { return (item.key_end - 1) / kKeys * kKeys; }

  // Notes what the item's rows see and how its scores are scaled.
  __device__ void look(const WorkItem& item) {
    const int first_row = min(warp_ * Tile::kWarpRows, item.rows - 1);
    const int last_row = min(first_row + Tile::kWarpRows, item.rows) - 1;
    const KeyRange of_first = visible_keys(p_, item, first_row), of_last = visible_keys(p_, item, last_row);
    __syncwarp();
    if (lane_ == 0) {
      view_.scale = ScoreScale(p_, item.request, item.head_kv);
      view_.some = {max(item.key_begin, of_first.begin), min(item.key_end, of_last.end)};
      view_.all = {max(item.key_begin, of_last.begin), min(item.key_end, of_first.end)};
    }
    __syncwarp();
  }

  // The warp's rows of the block at `key`, to be loaded next.
  __device__ void find(const WorkItem& item, int key) {
#pragma unroll
    for (int i = 0; i < Tile::kLoads; ++i) {
      rows_[i].find(p_, view_.memory.page_table, key + own_row(i), keys_of(item), lane_);
    }
  }
  __device__ void load_keys(const WorkItem& item) {
#pragma unroll
    for (int i = 0; i < Tile::kLoads; ++i) {
      rows_[i].load<kDim>(keys_ + stage_ * Tile::kKeyBytes + own_row(i) * RowsK::kStride, view_.memory.k,
                          p_.k_page_stride, p_.k_row_stride, p_, keys_of(item), lane_);
    }
  }
  __device__ void load_values(const WorkItem& item) {
#pragma unroll
    for (int i = 0; i < Tile::kLoads; ++i) {
      rows_[i].load<kDimV>(values_ + stage_ * Tile::kValueBytes + own_row(i) * RowsV::kStride, view_.memory.v,
                           p_.v_page_stride, p_.v_row_stride, p_, keys_of(item), lane_);
    }
  }
  __device__ int own_row(int load) const { return load * kBlockKeys + 16 * warp_; }

  // The weights of the block at `key`.
  __device__ void weigh(const WorkItem& item, int key, int stage) {
    multiply_keys(stage);
    if (view_.scale.transformed) transform(view_.scale);
    if (key < view_.all.begin || key + kKeys > view_.all.end) mask(item, key);
    softmax(view_.scale.scale);
  }

  // scores = Q K^T.
  __device__ void multiply_keys(int stage) {
    const uint32_t query_address = queries_ + RowsK::offset(lane_ & 15, lane_ >> 4);
    const uint32_t key_address =
        keys_ + stage * Tile::kKeyBytes + RowsK::offset((lane_ & 7) + ((lane_ >> 4) << 3), (lane_ >> 3) & 1);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
        scores_[m][n][0] = scores_[m][n][1] = scores_[m][n][2] = scores_[m][n][3] = 0.0f;
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
          mma_m16n8k16<T>(scores_[m][2 * n], a[m], b[0], b[1]);
          mma_m16n8k16<T>(scores_[m][2 * n + 1], a[m], b[2], b[3]);
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
        for (int j = 0; j < 4; ++j) scores_[m][n][j] = scale.transform(scores_[m][n][j]);
      }
    }
  }

  // Causal masks cut blocks at their end alone, others also at their beginning.
  __device__ void mask(const WorkItem& item, int key) {
    const bool at_begin = key < view_.all.begin;
    const int at = key + 2 * (lane_ % 4);
    KeyRange rows[kRowTiles][2];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = warp_ * Tile::kWarpRows + 16 * m + 8 * half + lane_ / 4;
        rows[m][half] = visible_keys(p_, item, min(r, item.rows - 1));
      }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const KeyRange row = rows[m][half];
        const int begin = max(row.begin, item.key_begin) - at, end = min(row.end, item.key_end) - at;
#pragma unroll
        for (int i = 0; i < 2 * kScoreTiles; ++i) {
          if (8 * (i / 2) + i % 2 >= end) scores_[m][i / 2][2 * half + i % 2] = minus_infinity();
        }
        if (!at_begin) continue;
#pragma unroll
        for (int i = 0; i < 2 * kScoreTiles; ++i) {
          if (8 * (i / 2) + i % 2 < begin) scores_[m][i / 2][2 * half + i % 2] = minus_infinity();
        }
      }
    }
  }

  // From scores to weights, in the order that gives the most independent instructions: the maxima of all rows, one
  // branch, all exponentials.
  __device__ void softmax(float scale) {
    float block_max[kRowTiles][2];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x[4];  // four chains
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
          const float pair = fmaxf(scores_[m][n][2 * half], scores_[m][n][2 * half + 1]);
          x[n % 4] = n < 4 ? pair : fmaxf(x[n % 4], pair);
        }
        block_max[m][half] = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
      }
    }
    // The output is rescaled only when a maximum grew by more than a factor of 2^max_growth since the last time (or was
    // -inf until now). The weights are then at most that instead of 1, as is their sum. Whether one did is seen without
    // the maxima of whole rows, which take a shuffle after the other.
    bool grew = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        grew |= (block_max[m][half] - max_[m][half]) * scale > p_.max_growth;
      }
    }
    if (__any_sync(kFullWarp, grew)) rescale(block_max, scale);

#pragma unroll
    for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float shift = max_[m][half] == minus_infinity() ? 0.0f : max_[m][half] * scale;
          const float first = exp2_approx(fmaf(scores_[m][n][2 * half], scale, -shift));
          const float second = exp2_approx(fmaf(scores_[m][n][2 * half + 1], scale, -shift));
          weights_[m][n / 2][n % 2 * 2 + half] = pack<T>(first, second);
          sum_[m][half] += first + second;
        }
      }
    }
  }

  // To maxima that hold those of the block, which are given by lanes.
  __device__ void rescale(const float (&block_max)[kRowTiles][2], float scale) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float new_max = fmaxf(max_[m][half], block_max[m][half]);
        new_max = fmaxf(new_max, __shfl_xor_sync(kFullWarp, new_max, 1));
        new_max = fmaxf(new_max, __shfl_xor_sync(kFullWarp, new_max, 2));
        const float keep = new_max == max_[m][half] ? 1.0f : exp2_approx((max_[m][half] - new_max) * scale);
        max_[m][half] = new_max;
        sum_[m][half] *= keep;
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
          out_[m][n][2 * half] *= keep;
          out_[m][n][2 * half + 1] *= keep;
        }
      }
    }
  }

  // out += P V.
  __device__ void multiply_values(int stage) {
    const uint32_t address = values_ + stage * Tile::kValueBytes + RowsV::offset(lane_ & 15, lane_ >> 4);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kOutTiles / 2; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, RowsV::piece_pair(address, n) + 16 * k * RowsV::kStride);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k16<T>(out_[m][2 * n], weights_[m][k], b[0], b[1]);
          mma_m16n8k16<T>(out_[m][2 * n + 1], weights_[m][k], b[2], b[3]);
        }
      }
    }
  }

  const KernelParams& p_;
  const int lane_;
  const int warp_;
  const uint32_t queries_;  // the warp's own rows
  const uint32_t keys_;
  const uint32_t values_;
  WarpView& view_;
  KeyRows rows_[Tile::kLoads];  // to be loaded next
  int stage_ = 0;               // to be loaded next
  float scores_[kRowTiles][kScoreTiles][4];
  uint32_t weights_[kRowTiles][kKeys / 16][4];  // pairs of them, as the product with V takes them
  float out_[kRowTiles][kOutTiles][4];
  float max_[kRowTiles][2];  // of q.k, before the scale; what the weights are relative to
  float sum_[kRowTiles][2];  // of this lane's keys
};

}  // namespace onepass::portable
