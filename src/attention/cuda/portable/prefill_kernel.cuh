// Many packed rows in a tile: what counts is to keep the tensor cores busy.
//
// Four warps own 32 rows each (16 where the output takes more than half of the registers): every fragment of K and V
// that is read from shared memory serves two products. Q stays in shared memory, the output and the scores in
// registers. The blocks of keys run from the last to the first; with two stages one barrier a block suffices, with one
// there are two.
#pragma once

#include "attention/cuda/portable/prefill_rows.cuh"
#include "attention/cuda/portable/results.cuh"
#include "attention/cuda/portable/row_loader.cuh"

namespace onepass::portable {

// The same number, of which the compiler does not know that: it cannot compute ahead of a loop what depends on it,
// which would take registers in the loop for something that is used once.
__device__ inline int computed_here(int x) {
  asm volatile("mov.b32 %0, %0;" : "+r"(x));
  return x;
}

template <typename T, int kDim, int kDimV>
class PrefillWarp {
  using Tile = PrefillTile<kDim, kDimV>;
  using RowsK = SharedRows<kDim>;
  using RowsV = SharedRows<kDimV>;
  static constexpr int kRowTiles = Tile::kRowTiles;
  static constexpr int kKeys = Tile::kKeys;
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
    const int lane = computed_here(lane_), first_row = computed_here(warp_) * Tile::kWarpRows;
    constexpr int kPieces = Rows::kPieces;
    constexpr int kTogether = kPieces % 8 == 0 ? kPieces / 8 : 1;  // copies of one row
#pragma unroll 1
    for (int i = 0; i < Tile::kWarpRows * kPieces / 32; i += kTogether) {
      const int r = copied_row<kPieces>(i, lane);
      const bool real = first_row + r < item.rows;
      const PackedRow row(p_, item, real ? first_row + r : 0);
      const T* const q = static_cast<const T*>(p_.q) + row.token * p_.q_row_stride + row.head * p_.q_head_stride;
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int piece = copied_piece<kPieces>(i + j, lane);
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
    rows_.reset();
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
      if (matters) rows_.multiply_values(values_ + stage * Tile::kValueBytes, lane_);
      if (key == last && key > first) announce();
    }
    load_next_queries();
  }

  // The results of the warp's rows: to the output, or to the item's slot.
  __device__ void store(const WorkItem& item) {
    const float v_scale = value_scale(p_, item);
    const int first_row = computed_here(warp_) * Tile::kWarpRows + lane_ / 4;
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) {
        rows_.sum[i / 2][i % 2] += __shfl_xor_sync(kFullWarp, rows_.sum[i / 2][i % 2], distance);
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const int m = i / 2, half = i % 2;
      const bool empty = rows_.max[m][half] == minus_infinity();
      const float lse =
          empty ? minus_infinity() : (rows_.max[m][half] * view_.scale.scale + __log2f(rows_.sum[m][half])) * kLn2;
      const float factor = empty ? 0.0f : __fdividef(v_scale, rows_.sum[m][half]);
      const int r = first_row + 16 * m + 8 * half;
      if (item.parts > 1) {
        store_part(item, r, m, half, factor, lse);
      } else {
        store_row(item, r, m, half, factor, lse);
      }
    }
  }

 private:
  __device__ static int last_block(const WorkItem& item) { return (item.key_end - 1) / kKeys * kKeys; }

  // Notes what the item's rows see and how its scores are scaled.
  __device__ void look(const WorkItem& item) {
    const int first_row = min(computed_here(warp_) * Tile::kWarpRows, item.rows - 1);
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
      found_[i].find(p_, view_.memory.page_table, key + own_row(i), keys_of(item), lane_);
    }
  }
  __device__ void load_keys(const WorkItem& item) {
#pragma unroll
    for (int i = 0; i < Tile::kLoads; ++i) {
      found_[i].load<kDim>(keys_ + stage_ * Tile::kKeyBytes + own_row(i) * RowsK::kStride, view_.memory.k,
                           p_.k_page_stride, p_.k_row_stride, p_, keys_of(item), lane_);
    }
  }
  __device__ void load_values(const WorkItem& item) {
#pragma unroll
    for (int i = 0; i < Tile::kLoads; ++i) {
      found_[i].load<kDimV>(values_ + stage_ * Tile::kValueBytes + own_row(i) * RowsV::kStride, view_.memory.v,
                            p_.v_page_stride, p_.v_row_stride, p_, keys_of(item), lane_);
    }
  }
  __device__ int own_row(int load) const { return load * kBlockKeys + 16 * warp_; }

  // The weights of the block at `key`.
  __device__ void weigh(const WorkItem& item, int key, int stage) {
    rows_.multiply_keys(queries_, keys_ + stage * Tile::kKeyBytes, lane_);
    if (view_.scale.transformed) rows_.transform(view_.scale);
    const bool at_begin = key < view_.all.begin;
    if (at_begin || key + kKeys > view_.all.end) {
      rows_.mask(p_, item, computed_here(warp_) * Tile::kWarpRows, key, at_begin, lane_);
    }
    rows_.softmax(view_.scale.scale, p_.max_growth);
  }

  __device__ void store_part(const WorkItem& item, int r, int m, int half, float factor, float lse) {
    if (r >= item.rows) return;
    if (lane_ % 4 == 0) *partial_lse(p_, item.slot, r) = lse;
    store_floats(reinterpret_cast<float*>(partial_out<kDimV>(p_, item.slot, r, 0)), m, half, factor);
  }

  __device__ void store_row(const WorkItem& item, int r, int m, int half, float factor, float lse) {
    const bool real = r < item.rows;
    const PackedRow row(p_, item, real ? r : 0);
    if (p_.sinks != nullptr) {
      Fold state;
      state.add(lse);
      factor *= state.finish(p_.sinks, row.head);
      lse = state.lse();
    }
    const int t = lane_ % 4;
    if (real && t == 0) store_lse(p_, row, lse);
    const int64_t at = row.token * p_.out_row_stride + row.head * p_.out_head_stride;
    if (p_.out_float32) {
      if (real) store_floats(static_cast<float*>(p_.out) + at, m, half, factor);
      return;
    }
    T* const out = static_cast<T*>(p_.out) + at + 8 * (t % 2) + 4 * (t / 2);
#pragma unroll
    for (int n = 0; n < kOutTiles; n += 2) {
      const float(&a)[4] = rows_.out[m][n], (&b)[4] = rows_.out[m][n + 1];
      const uint2 gathered = gather_columns(pack<T>(a[2 * half] * factor, a[2 * half + 1] * factor),
                                            pack<T>(b[2 * half] * factor, b[2 * half + 1] * factor));
      if (real) *reinterpret_cast<uint2*>(out + 8 * n) = gathered;
    }
  }

  __device__ void store_floats(float* row, int m, int half, float factor) const {
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
      const float(&x)[4] = rows_.out[m][n];
      *reinterpret_cast<float2*>(row + 8 * n + 2 * (lane_ % 4)) = {x[2 * half] * factor, x[2 * half + 1] * factor};
    }
  }

  const KernelParams& p_;
  const int lane_;
  const int warp_;
  const uint32_t queries_;  // the warp's own rows
  const uint32_t keys_;
  const uint32_t values_;
  WarpView& view_;
  KeyRows found_[Tile::kLoads];  // to be loaded next
  int stage_ = 0;                // to be loaded next
  PrefillRows<T, kDim, kDimV> rows_;
};

// Asynchronous; by one thread.
__device__ inline void copy_item(WorkItem& destination, const WorkItem& source) {
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(WorkItem)); i += 16) {
    cp_async_16(shared_address(&destination) + i, reinterpret_cast<const char*>(&source) + i);
  }
}

template <typename T, int kDim, int kDimV>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) prefill_kernel(const __grid_constant__ KernelParams p) {
  using Tile = PrefillTile<kDim, kDimV>;
  extern __shared__ __align__(1024) char shared[];
  auto& control = *reinterpret_cast<typename Tile::Control*>(shared + Tile::kTileBytes);
  if (static_cast<int>(blockIdx.x) >= p.header->num_items) return;
  if (threadIdx.x == 0) {
    control.count = p.header->num_items;
    control.items[0] = p.items[blockIdx.x];
  }
  __syncthreads();
  PrefillWarp<T, kDim, kDimV> warp(p, control.views[threadIdx.x / 32], shared);
  warp.load_first(control.items[0]);
  warp.load_queries(control.items[0]);
  for (int current = 0;; current = current == 2 ? 0 : current + 1) {
    const int after = current == 2 ? 0 : current + 1;
    const WorkItem& item = control.items[current];
    const int next = take_ticket(p, control.count);
    const auto announce = [&] {
      if (threadIdx.x == 0) {
        control.numbers[current] = next;
        if (next < control.count) copy_item(control.items[after], p.items[next]);
      }
      cp_async_commit();
    };
    const auto has_next = [&] { return control.numbers[current] < control.count; };
    const auto load_next = [&] {
      if (has_next()) warp.load_first(control.items[after]);
    };
    const auto load_next_queries = [&] {
      if (has_next()) warp.load_queries(control.items[after]);
    };
    warp.attend(item, announce, load_next, load_next_queries);
    warp.store(item);
    if (item.parts > 1) arrive_and_merge<T, kDimV>(p, item, &control.last);
    if (!has_next()) break;
  }
  leave_tickets(p, control.count);
}

}  // namespace onepass::portable
