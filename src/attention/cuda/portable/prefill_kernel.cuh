// Many packed rows in a tile: what counts is to keep the tensor cores busy.
//
// Four warps own 32 rows each (16 where the output takes more than half of the registers): every fragment of K and V
// that is read from shared memory serves two products. Q stays in shared memory, the output and the scores in
// registers. The blocks of keys run from the last to the first; with two stages one barrier a block suffices, with one
// there are two.
#pragma once

#include "attention/cuda/portable/results.cuh"
#include "attention/cuda/portable/row_loader.cuh"

namespace onepass::portable {

// Keys that some of a warp's rows see, and that all of them see.
struct Sight {
  KeyRange some;
  KeyRange all;
};

template <int kDim, int kDimV>
struct PrefillTile {
  static constexpr int kRowTiles = kDimV <= 128 ? 2 : 1;  // of 16 rows, for each warp
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kQueryBytes = kRows * SharedRows<kDim>::kStride;
  static constexpr int kKeyBytes = kBlockKeys * SharedRows<kDim>::kStride;
  static constexpr int kValueBytes = kBlockKeys * SharedRows<kDimV>::kStride;
  // At most 96 KiB: two blocks an SM on an H100, one on a card with 100 KiB.
  static constexpr int kStages = kQueryBytes + 2 * (kKeyBytes + kValueBytes) <= 98304 ? 2 : 1;
  static constexpr int kTileBytes = kQueryBytes + kStages * (kKeyBytes + kValueBytes);
  static_assert(kTileBytes <= 98304);
  // Here rather than in registers, of which the loop leaves none. Three items: thread 0 prepares the next one when
  // other warps may still be at the end of the one before.
  struct Control {
    WorkItem items[3];
    int numbers[3];  // of the item after each
    Sight sight[kWarps];
    int last;
  };
  static constexpr int kSharedBytes = kTileBytes + sizeof(Control);
};

template <typename T, int kDim, int kDimV>
class PrefillWarp {
  using Tile = PrefillTile<kDim, kDimV>;
  using RowsK = SharedRows<kDim>;
  using RowsV = SharedRows<kDimV>;
  static constexpr int kRowTiles = Tile::kRowTiles;
  static constexpr int kScoreTiles = kBlockKeys / 8;
  static constexpr int kOutTiles = kDimV / 8;
  // The output is rescaled only when the maximum grew by more than a factor 2^8 since the last time: weights are then
  // at most 2^8, and the sum, which is off by the same factor, makes the result exact.
  static constexpr float kMaxGrowth = 8.0f;

 public:
  __device__ PrefillWarp(const KernelParams& p, Sight& sight, char* shared)
      : p_(p),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        queries_(shared_address(shared) + warp_ * Tile::kWarpRows * RowsK::kStride),
        keys_(shared_address(shared) + Tile::kQueryBytes),
        values_(keys_ + Tile::kStages * Tile::kKeyBytes),
        sight_(sight) {}

  // Loads an item's last keys, with which its work begins. The keys before them are found for the load after that.
  __device__ void load_first(const WorkItem& item) {
    const int key = last_block(item);
    rows_.find(p_, item.page_table, key + 16 * warp_, item.keys, lane_);
    if (item.keys.end > item.keys.begin) load_keys(item);
    if constexpr (Tile::kStages == 2) {
      if (item.keys.end > item.keys.begin) load_values(item);
      rows_.find(p_, item.page_table, key - kBlockKeys + 16 * warp_, item.keys, lane_);
      stage_ ^= 1;
    }
    cp_async_commit();
  }

  // REQUIRES: load_first(item). `load_next` calls load_first() of the next item if there is one; it's called once, when
  // the stage that takes that item's keys is free.
  template <typename LoadNext>
  __device__ void attend(const WorkItem& item, const LoadNext& load_next) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      max_[m][0] = max_[m][1] = minus_infinity();
      sum_[m][0] = sum_[m][1] = 0.0f;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) out_[m][n][0] = out_[m][n][1] = out_[m][n][2] = out_[m][n][3] = 0.0f;
    }
    const KeyRange keys = item.keys;
    if (keys.end <= keys.begin) {
      __syncthreads();
      load_next();
      return;
    }
    const int first_row = min(warp_ * Tile::kWarpRows, item.rows - 1);
    const int last_row = min(first_row + Tile::kWarpRows, item.rows) - 1;
    const KeyRange of_first = item.visible(p_, first_row), of_last = item.visible(p_, last_row);
    __syncwarp();
    if (lane_ == 0) {
      sight_ = {.some = {max(keys.begin, of_first.begin), min(keys.end, of_last.end)},
                .all = {max(keys.begin, of_last.begin), min(keys.end, of_first.end)}};
    }
    __syncwarp();

    for (int key = last_block(item), first = keys.begin / kBlockKeys * kBlockKeys; key >= first; key -= kBlockKeys) {
      cp_async_wait<0>();
      __syncthreads();  // the rows of this block are there, and all are done with those of the block before
      const bool matters = key < sight_.some.end && key + kBlockKeys > sight_.some.begin;
      if constexpr (Tile::kStages == 2) {
        const int stage = stage_ ^ 1;
        if (key > first) {
          load_keys(item);
          load_values(item);
          rows_.find(p_, item.page_table, key - 2 * kBlockKeys + 16 * warp_, keys, lane_);
          stage_ ^= 1;
          cp_async_commit();
        } else {
          load_next();
        }
        if (!matters) continue;
        weigh(item, key, stage);
        multiply_values(stage);
      } else {
        load_values(item);
        cp_async_commit();
        rows_.find(p_, item.page_table, key - kBlockKeys + 16 * warp_, keys, lane_);
        if (matters) weigh(item, key, 0);
        cp_async_wait<0>();
        __syncthreads();
        if (key > first) {
          load_keys(item);
          cp_async_commit();
        } else {
          load_next();
        }
        if (matters) multiply_values(0);
      }
    }
  }

  // Rows that don't exist are zeros.
  __device__ void load_queries(const WorkItem& item) {
    constexpr int kPieces = RowsK::kPieces;
#pragma unroll 4
    for (int i = lane_; i < Tile::kWarpRows * kPieces; i += 32) {
      const int warp_row = i / kPieces, piece = i % kPieces;
      const int r = warp_ * Tile::kWarpRows + warp_row;
      const bool real = r < item.rows;
      const PackedRow row(p_, item, real ? r : 0);
      const T* const q = static_cast<const T*>(p_.q) + row.token * p_.q_row_stride + row.head * p_.q_head_stride;
      cp_async_16_or_zeros(queries_ + RowsK::offset(warp_row, piece), q + 8 * piece, real);
    }
    cp_async_commit();
  }

  // The results of the warp's rows: to the output, or to the item's slot.
  __device__ void store(const WorkItem& item, char* shared) {
    const int g = lane_ / 4, t = lane_ % 4;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = sum_[m][half];
        sum += __shfl_xor_sync(kFullWarp, sum, 1);
        sum += __shfl_xor_sync(kFullWarp, sum, 2);
        const int warp_row = 16 * m + 8 * half + g;
        const int r = warp_ * Tile::kWarpRows + warp_row;
        if (r >= item.rows) continue;
        const bool empty = max_[m][half] == minus_infinity();
        const float lse = empty ? minus_infinity() : max_[m][half] * item.scale.scale * kLn2 + logf(sum);
        float factor = empty ? 0.0f : __fdividef(item.v_scale, sum);
        float* destination = nullptr;
        if (item.parts > 1) {
          destination = reinterpret_cast<float*>(partial_out<kDimV>(p_, item.slot, r, 2 * t));
          if (t == 0) *partial_lse(p_, item.slot, r) = lse;
        } else {
          const PackedRow row(p_, item, r);
          Fold state;
          state.add(lse);
          factor *= state.finish(p_.sinks, row.head);
          if (t == 0) store_lse(p_, row, state.lse());
          if (p_.out_float32) {
            destination =
                static_cast<float*>(p_.out) + row.token * p_.out_row_stride + row.head * p_.out_head_stride + 2 * t;
          }
        }
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
          const float first = out_[m][n][2 * half] * factor, second = out_[m][n][2 * half + 1] * factor;
          if (destination != nullptr) {
            *reinterpret_cast<float2*>(destination + 8 * n) = {first, second};
          } else {
            *reinterpret_cast<uint32_t*>(shared + warp_ * Tile::kWarpRows * RowsK::kStride +
                                         RowsK::offset(warp_row, n) + 4 * t) = pack<T>(first, second);
          }
        }
      }
    }
    if (item.parts == 1 && !p_.out_float32) store_staged(item, shared);
  }

 private:
  __device__ static int last_block(const WorkItem& item) { return (item.keys.end - 1) / kBlockKeys * kBlockKeys; }

  // To stage_, from rows_.
  __device__ void load_keys(const WorkItem& item) {
    rows_.load<kDim>(keys_ + stage_ * Tile::kKeyBytes + 16 * warp_ * RowsK::kStride, item.k, p_.k_page_stride,
                     p_.k_row_stride, p_, item.keys, lane_);
  }
  __device__ void load_values(const WorkItem& item) {
    rows_.load<kDimV>(values_ + stage_ * Tile::kValueBytes + 16 * warp_ * RowsV::kStride, item.v, p_.v_page_stride,
                      p_.v_row_stride, p_, item.keys, lane_);
  }

  // The weights of one block of keys, in place of its scores.
  __device__ void weigh(const WorkItem& item, int key, int stage) {
    multiply_keys(stage);
    if (item.scale.transformed) transform(item.scale);
    if (key < sight_.all.begin || key + kBlockKeys > sight_.all.end) mask(item, key);
    softmax(item.scale.scale);
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

  __device__ void mask(const WorkItem& item, int key) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = warp_ * Tile::kWarpRows + 16 * m + 8 * half + lane_ / 4;
        const KeyRange row = item.visible(p_, min(r, item.rows - 1));
        const int at = key + 2 * (lane_ % 4);
        const int begin = max(row.begin, item.keys.begin) - at, end = min(row.end, item.keys.end) - at;
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            if (8 * n + j < begin || 8 * n + j >= end) scores_[m][n][2 * half + j] = minus_infinity();
          }
        }
      }
    }
  }

  // Turns the scores into weights.
  __device__ void softmax(float scale) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      float block_max[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = fmaxf(scores_[m][0][2 * half], scores_[m][0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < kScoreTiles; ++n) {
          x = fmaxf(x, fmaxf(scores_[m][n][2 * half], scores_[m][n][2 * half + 1]));
        }
        x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
        block_max[half] = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
      }
      // Also true when the maximum was -inf and is not any more.
      const bool grew =
          (block_max[0] - max_[m][0]) * scale > kMaxGrowth || (block_max[1] - max_[m][1]) * scale > kMaxGrowth;
      if (__any_sync(kFullWarp, grew)) rescale(m, block_max, scale);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float shift = max_[m][half] == minus_infinity() ? 0.0f : max_[m][half] * scale;
        float sum[2] = {};  // two chains of additions
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& score = scores_[m][n][2 * half + j];
            score = exp2_approx(fmaf(score, scale, -shift));
            sum[j] += score;
          }
        }
        sum_[m][half] += sum[0] + sum[1];
      }
    }
  }

  __device__ void rescale(int m, const float (&block_max)[2], float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float new_max = fmaxf(max_[m][half], block_max[half]);
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

  // out += P V.
  __device__ void multiply_values(int stage) {
    const uint32_t address = values_ + stage * Tile::kValueBytes + RowsV::offset(lane_ & 15, lane_ >> 4);
#pragma unroll
    for (int k = 0; k < kBlockKeys / 16; ++k) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float(&s)[4] = scores_[m][2 * k + j / 2];
          a[m][j] = pack<T>(s[j % 2 * 2], s[j % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int n = 0; n < kOutTiles / 2; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, RowsV::piece_pair(address, n) + 16 * k * RowsV::kStride);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k16<T>(out_[m][2 * n], a[m], b[0], b[1]);
          mma_m16n8k16<T>(out_[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // The rows that store() left where the warp's queries were, 16 bytes a lane.
  __device__ void store_staged(const WorkItem& item, const char* shared) {
    __syncwarp();
    constexpr int kPieces = kDimV / 8;
#pragma unroll 4
    for (int i = lane_; i < Tile::kWarpRows * kPieces; i += 32) {
      const int warp_row = i / kPieces, piece = i % kPieces;
      const int r = warp_ * Tile::kWarpRows + warp_row;
      if (r >= item.rows) break;
      const PackedRow row(p_, item, r);
      T* const out = static_cast<T*>(p_.out) + row.token * p_.out_row_stride + row.head * p_.out_head_stride;
      *reinterpret_cast<uint4*>(out + 8 * piece) = *reinterpret_cast<const uint4*>(
          shared + warp_ * Tile::kWarpRows * RowsK::kStride + RowsK::offset(warp_row, piece));
    }
  }

  const KernelParams& p_;
  const int lane_;
  const int warp_;
  const uint32_t queries_;  // the warp's own rows
  const uint32_t keys_;
  const uint32_t values_;
  Sight& sight_;
  KeyRows rows_;   // to be loaded next
  int stage_ = 0;  // to be loaded next
  float scores_[kRowTiles][kScoreTiles][4];
  float out_[kRowTiles][kOutTiles][4];
  float max_[kRowTiles][2];  // of q.k, before the scale; what the weights are relative to
  float sum_[kRowTiles][2];  // of this lane's keys
};

template <typename T, int kDim, int kDimV>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) prefill_kernel(const __grid_constant__ KernelParams p) {
  using Tile = PrefillTile<kDim, kDimV>;
  extern __shared__ __align__(1024) char shared[];
  auto& control = *reinterpret_cast<typename Tile::Control*>(shared + Tile::kTileBytes);
  const Tickets tickets(p);
  if (static_cast<int>(blockIdx.x) >= tickets.count()) return tickets.leave();
  if (threadIdx.x == 0) control.items[0] = WorkItem(p, blockIdx.x);
  __syncthreads();
  PrefillWarp<T, kDim, kDimV> warp(p, control.sight[threadIdx.x / 32], shared);
  warp.load_first(control.items[0]);
  for (int current = 0;; current = current == 2 ? 0 : current + 1) {
    const int after = current == 2 ? 0 : current + 1;
    const WorkItem& item = control.items[current];
    warp.load_queries(item);
    // While the first rows are under way. The others look after the next barrier.
    if (threadIdx.x == 0) {
      const int next = tickets.take();
      control.numbers[current] = next;
      if (next < tickets.count()) control.items[after] = WorkItem(p, next);
    }
    warp.attend(item, [&] {
      if (control.numbers[current] < tickets.count()) warp.load_first(control.items[after]);
    });
    warp.store(item, shared);
    if (item.parts > 1) arrive_and_merge<T, kDimV>(p, item, &control.last);
    if (control.numbers[current] >= tickets.count()) break;
    __syncwarp();  // the warp's output has left the place of its queries
  }
  tickets.leave();
}

}  // namespace onepass::portable
