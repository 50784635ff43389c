// Many packed rows in a tile: what counts is to keep the tensor cores busy.
//
// Four warps own 32 rows each (16 where the output takes more than half of the registers): every fragment of K and V
// that is read from shared memory serves two products. Q stays in shared memory, the output and the scores in
// registers. The blocks of keys run from the last to the first; with two stages one barrier a block suffices, with one
// there are two.
#pragma once

#include "attention/cuda/portable/results.cuh"
#include "attention/cuda/portable/shared_rows.cuh"

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
  // Here rather than in registers, of which the loop leaves none.
  struct Control {
    WorkItem item;
    Sight sight[kWarps];
    int next;
    int last;
  };
  static constexpr int kSharedBytes = kTileBytes + sizeof(Control);
};

template <typename T, int kDim, int kDimV>
class PrefillWarp {
  using Tile = PrefillTile<kDim, kDimV>;
  using KeyRows = SharedRows<kDim>;
  using ValueRows = SharedRows<kDimV>;
  static constexpr int kRowTiles = Tile::kRowTiles;
  static constexpr int kScoreTiles = kBlockKeys / 8;
  static constexpr int kOutTiles = kDimV / 8;
  // The output is rescaled only when the maximum grew by more than a factor 2^8 since the last time: weights are then
  // at most 2^8, and the sum, which is off by the same factor, makes the result exact.
  static constexpr float kMaxGrowth = 8.0f;

 public:
  __device__ PrefillWarp(const KernelParams& p, const WorkItem& item, Sight& sight, char* shared)
      : p_(p),
        item_(item),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        queries_(shared_address(shared) + warp_ * Tile::kWarpRows * KeyRows::kStride),
        keys_(shared_address(shared) + Tile::kQueryBytes),
        values_(keys_ + Tile::kStages * Tile::kKeyBytes),
        sight_(sight) {}

  __device__ void attend(const ScoreScale& scale) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      max_[m][0] = max_[m][1] = minus_infinity();
      sum_[m][0] = sum_[m][1] = 0.0f;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) out_[m][n][0] = out_[m][n][1] = out_[m][n][2] = out_[m][n][3] = 0.0f;
    }
    const KeyRange keys = item_.keys;
    if (keys.end <= keys.begin) return;
    const int first = keys.begin / kBlockKeys * kBlockKeys;
    int key = (keys.end - 1) / kBlockKeys * kBlockKeys;  // of the block at work

    const int first_row = min(warp_ * Tile::kWarpRows, item_.rows - 1);
    const int last_row = min(first_row + Tile::kWarpRows, item_.rows) - 1;
    const KeyRange of_first = item_.visible(p_, first_row), of_last = item_.visible(p_, last_row);
    if (lane_ == 0) {
      sight_ = {.some = {max(keys.begin, of_first.begin), min(keys.end, of_last.end)},
                .all = {max(keys.begin, of_last.begin), min(keys.end, of_first.end)}};
    }
    __syncwarp();
    const auto block_matters = [&] { return key < sight_.some.end && key + kBlockKeys > sight_.some.begin; };
    const auto block_is_cut = [&] { return key < sight_.all.begin || key + kBlockKeys > sight_.all.end; };

    RowPlace place;  // of the block to be loaded next
    const int own_row = 16 * warp_ + lane_ % 16;
    place.find(p_, item_.page_table, key + own_row, keys);
    load_queries();
    load_keys(0, place);
    if constexpr (Tile::kStages == 2) {
      load_values(0, place);
      cp_async_commit();
      place.find(p_, item_.page_table, key - kBlockKeys + own_row, keys);
      for (int stage = 0; key >= first; key -= kBlockKeys, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // this block's rows are there, and all are done with those of the block before
        if (key > first) {
          load_keys(stage ^ 1, place);
          load_values(stage ^ 1, place);
          place.find(p_, item_.page_table, key - 2 * kBlockKeys + own_row, keys);
        }
        cp_async_commit();
        if (!block_matters()) continue;
        multiply_keys(stage);
        if (scale.transformed) transform(scale);
        if (block_is_cut()) mask(key);
        softmax(scale.scale);
        multiply_values(stage);
      }
    } else {
      cp_async_commit();
      for (; key >= first; key -= kBlockKeys) {
        cp_async_wait<0>();
        __syncthreads();
        load_values(0, place);
        cp_async_commit();
        place.find(p_, item_.page_table, key - kBlockKeys + own_row, keys);
        if (block_matters()) {
          multiply_keys(0);
          if (scale.transformed) transform(scale);
          if (block_is_cut()) mask(key);
          softmax(scale.scale);
        }
        cp_async_wait<0>();
        __syncthreads();
        if (key > first) load_keys(0, place);
        cp_async_commit();
        if (block_matters()) multiply_values(0);
      }
    }
    cp_async_wait<0>();
  }

  // The results of the warp's rows: to the output, or to the item's slot.
  __device__ void store(const ScoreScale& scale, float v_scale, char* shared) {
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
        if (r >= item_.rows) continue;
        const bool empty = max_[m][half] == minus_infinity();
        const float lse = empty ? minus_infinity() : max_[m][half] * scale.scale * kLn2 + logf(sum);
        float factor = empty ? 0.0f : __fdividef(v_scale, sum);
        float* destination = nullptr;
        if (item_.parts > 1) {
          destination = reinterpret_cast<float*>(partial_out<kDimV>(p_, item_.slot, r, 2 * t));
          if (t == 0) *partial_lse(p_, item_.slot, r) = lse;
        } else {
          const PackedRow row(p_, item_, r);
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
            *reinterpret_cast<uint32_t*>(shared + warp_ * Tile::kWarpRows * KeyRows::kStride +
                                         KeyRows::offset(warp_row, n) + 4 * t) = pack<T>(first, second);
          }
        }
      }
    }
    if (item_.parts == 1 && !p_.out_float32) store_staged(shared);
  }

 private:
  // Rows that don't exist are zeros.
  __device__ void load_queries() {
    constexpr int kPieces = KeyRows::kPieces;
#pragma unroll 4
    for (int i = lane_; i < Tile::kWarpRows * kPieces; i += 32) {
      const int warp_row = i / kPieces, piece = i % kPieces;
      const int r = warp_ * Tile::kWarpRows + warp_row;
      const bool real = r < item_.rows;
      const PackedRow row(p_, item_, real ? r : 0);
      const T* const q = static_cast<const T*>(p_.q) + row.token * p_.q_row_stride + row.head * p_.q_head_stride;
      cp_async_16(queries_ + KeyRows::offset(warp_row, piece), q + 8 * piece, real);
    }
  }

  __device__ void load_keys(int stage, const RowPlace& place) {
    load_16_rows<kDim>(keys_ + stage * Tile::kKeyBytes + 16 * warp_ * KeyRows::kStride, item_.k,
                       place.offset(p_.k_page_stride, p_.k_row_stride), lane_);
  }
  __device__ void load_values(int stage, const RowPlace& place) {
    load_16_rows<kDimV>(values_ + stage * Tile::kValueBytes + 16 * warp_ * ValueRows::kStride, item_.v,
                        place.offset(p_.v_page_stride, p_.v_row_stride), lane_);
  }

  // scores = Q K^T.
  __device__ void multiply_keys(int stage) {
    const uint32_t query_address = queries_ + KeyRows::offset(lane_ & 15, lane_ >> 4);
    const uint32_t key_address =
        keys_ + stage * Tile::kKeyBytes + KeyRows::offset((lane_ & 7) + ((lane_ >> 4) << 3), (lane_ >> 3) & 1);
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
        load_matrices(a[m], KeyRows::piece_pair(query_address, k) + 16 * m * KeyRows::kStride);
      }
#pragma unroll
      for (int n = 0; n < kScoreTiles / 2; ++n) {
        uint32_t b[4];
        load_matrices(b, KeyRows::piece_pair(key_address, k) + 16 * n * KeyRows::kStride);
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

  __device__ void mask(int key) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = warp_ * Tile::kWarpRows + 16 * m + 8 * half + lane_ / 4;
        const KeyRange row = item_.visible(p_, min(r, item_.rows - 1));
        const int at = key + 2 * (lane_ % 4);
        const int begin = max(row.begin, item_.keys.begin) - at, end = min(row.end, item_.keys.end) - at;
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
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
          for (int j = 2 * half; j < 2 * half + 2; ++j) {
            scores_[m][n][j] = exp2_approx(fmaf(scores_[m][n][j], scale, -shift));
            sum_[m][half] += scores_[m][n][j];
          }
        }
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
    const uint32_t address = values_ + stage * Tile::kValueBytes + ValueRows::offset(lane_ & 15, lane_ >> 4);
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
        load_matrices_transposed(b, ValueRows::piece_pair(address, n) + 16 * k * ValueRows::kStride);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k16<T>(out_[m][2 * n], a[m], b[0], b[1]);
          mma_m16n8k16<T>(out_[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // The rows that store() left where the warp's queries were, 16 bytes a lane.
  __device__ void store_staged(const char* shared) {
    __syncwarp();
    constexpr int kPieces = kDimV / 8;
#pragma unroll 4
    for (int i = lane_; i < Tile::kWarpRows * kPieces; i += 32) {
      const int warp_row = i / kPieces, piece = i % kPieces;
      const int r = warp_ * Tile::kWarpRows + warp_row;
      if (r >= item_.rows) break;
      const PackedRow row(p_, item_, r);
      T* const out = static_cast<T*>(p_.out) + row.token * p_.out_row_stride + row.head * p_.out_head_stride;
      *reinterpret_cast<uint4*>(out + 8 * piece) = *reinterpret_cast<const uint4*>(
          shared + warp_ * Tile::kWarpRows * KeyRows::kStride + KeyRows::offset(warp_row, piece));
    }
  }

  const KernelParams& p_;
  const WorkItem& item_;
  const int lane_;
  const int warp_;
  const uint32_t queries_;  // the warp's own rows
  const uint32_t keys_;
  const uint32_t values_;
  Sight& sight_;
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
  for (int number = blockIdx.x; number < tickets.count(); number = control.next) {
    const int next = tickets.take();
    if (threadIdx.x == 0) control.item = WorkItem(p, number);
    __syncthreads();
    const WorkItem& item = control.item;
    const ScoreScale scale(p, item.request, item.head_kv);
    PrefillWarp<T, kDim, kDimV> warp(p, item, control.sight[threadIdx.x / 32], shared);
    warp.attend(scale);
    const float v_scale = p.v_descale != nullptr ? p.v_descale[item.request * p.num_heads_kv + item.head_kv] : 1.0f;
    warp.store(scale, v_scale, shared);
    if (item.parts > 1) arrive_and_merge<T, kDimV>(p, item, &control.last);
    if (threadIdx.x == 0) control.next = next;
    __syncthreads();
  }
  tickets.leave();
}

}  // namespace onepass::portable
