// Few packed rows (16 at most in a tile) and many keys: what counts is to keep memory busy.
//
// Of every block of 64 keys each of the four warps owns 16, which it loads, multiplies and adds up alone: its own ring
// of stages, its own maximum, sum and output. So no barrier of the thread block stands in the loop, and each warp has a
// few kilobytes under way at all times. At the end of the keys the four results are merged through shared memory.
#pragma once

#include "attention/cuda/portable/results.cuh"
#include "attention/cuda/portable/row_loader.cuh"

namespace onepass::portable {

template <int kDim, int kDimV>
struct DecodeTile {
  static constexpr int kRows = 16;
  static constexpr int kKeyBytes = 16 * SharedRows<kDim>::kStride;  // of one warp in one block
  static constexpr int kValueBytes = 16 * SharedRows<kDimV>::kStride;
  static constexpr int kStageBytes = kKeyBytes + kValueBytes;
  // 96 KiB: two blocks an SM on an H100, one on a card with 100 KiB.
  static constexpr int kStages = 98304 / (kWarps * kStageBytes) < 6 ? 98304 / (kWarps * kStageBytes) : 6;
  static constexpr int kWarpBytes = kStages * kStageBytes;
  static_assert(kStages >= 1);
  static_assert(kWarpBytes >= kRows * kDimV * 4, "the warp's output takes the place of its stages");
  static_assert(kStageBytes % 256 == 0);
  // Q's fragments lie in registers, or, where the output takes half of those, in shared memory, the same for all warps.
  static constexpr bool kSharedQueries = kDim > 192;
  struct Control {
    uint4 queries[kSharedQueries ? kDim / 16 : 1][32];
    float max[kWarps][kRows];  // logarithms to base 2
    float sum[kWarps][kRows];
    // As in the prefill kernel.
    WorkItem items[3];
    int numbers[3];  // of the item after each
    int count;       // of all items
    int last;
  };
  static constexpr int kSharedBytes = kWarps * kWarpBytes + sizeof(Control);
  // Each thread's share of the merge of parts that one thread block computes, in KernelParams::fold_state.
  static constexpr int kFoldFloats = kRows * kDimV / 4 * 6;
};

// One warp's 16 keys of each block.
template <typename T, int kDim, int kDimV>
class DecodeWarp {
  using Tile = DecodeTile<kDim, kDimV>;
  using RowsK = SharedRows<kDim>;
  using RowsV = SharedRows<kDimV>;

 public:
  __device__ DecodeWarp(const KernelParams& p, const WorkItem& item, char* shared, typename Tile::Control& control)
      : p_(p),
        item_(item),
        memory_(p, item),
        scale_(p, item.request, item.head_kv),
        control_(control),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        shared_(shared_address(shared) + warp_ * Tile::kWarpBytes) {}

  __device__ void load_queries() {
    if (Tile::kSharedQueries && warp_ != 0) return;
    const int g = lane_ / 4, t = lane_ % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = g + 8 * half;
      const bool real = r < item_.rows;
      const PackedRow row(p_, item_, real ? r : 0);
      const uint32_t* const q = reinterpret_cast<const uint32_t*>(
          static_cast<const T*>(p_.q) + row.token * p_.q_row_stride + row.head * p_.q_head_stride);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        const uint32_t near = real ? q[8 * k + t] : 0, far = real ? q[8 * k + t + 4] : 0;
        if constexpr (Tile::kSharedQueries) {
          uint32_t* const fragment = &control_.queries[k][lane_].x;
          fragment[half] = near;
          fragment[half + 2] = far;
        } else {
          q_[k][half] = near;
          q_[k][half + 2] = far;
        }
      }
    }
  }

  // Attends to `keys`, which lie in one split. The split begins at key `origin`: blocks are counted from there, so that
  // their edges do not depend on what else is in the tile.
  __device__ void attend(const KeyRange& keys, int origin) {
    const int first = origin + (keys.begin - origin) / kBlockKeys * kBlockKeys + 16 * warp_;
    const int blocks = keys.end > keys.begin ? (keys.end - first + 16 * warp_ + kBlockKeys - 1) / kBlockKeys : 0;
    max_[0] = max_[1] = minus_infinity();
    sum_[0] = sum_[1] = 0.0f;
#pragma unroll
    for (int n = 0; n < kDimV / 8; ++n) out_[n][0] = out_[n][1] = out_[n][2] = out_[n][3] = 0.0f;
    if (blocks == 0) return;

    const KeyRange first_row = visible_keys(p_, item_, 0), last_row = visible_keys(p_, item_, item_.rows - 1);
    const KeyRange all_see{max(keys.begin, last_row.begin), min(keys.end, first_row.end)};
    visible_[0] = visible_keys(p_, item_, min(lane_ / 4, item_.rows - 1));
    visible_[1] = visible_keys(p_, item_, min(lane_ / 4 + 8, item_.rows - 1));

    KeyRows rows;  // of the block to be loaded next
    rows.find(p_, memory_.page_table, first, keys, lane_);
#pragma unroll
    for (int s = 0; s < Tile::kStages; ++s) {
      const KeyRows now = rows;
      rows.find(p_, memory_.page_table, first + (s + 1) * kBlockKeys, keys, lane_);
      if (s < blocks) load_keys(s, now, keys);
      cp_async_commit();
      if (s < blocks) load_values(s, now, keys);
      cp_async_commit();
    }
    int stage = 0;
    for (int i = 0; i < blocks; ++i) {
      const int key = first + i * kBlockKeys;
      const KeyRows now = rows;
      const bool more = i + Tile::kStages < blocks;
      if (more) rows.find(p_, memory_.page_table, key + (Tile::kStages + 1) * kBlockKeys, keys, lane_);

      wait();
      multiply_keys(stage);
      __syncwarp();
      if (more) load_keys(stage, now, keys);
      cp_async_commit();
      if (scale_.transformed) transform(scale_);
      if (key < all_see.begin || key + 16 > all_see.end) mask(key, keys);
      softmax(scale_.scale);
      wait();
      multiply_values(stage);
      __syncwarp();
      if (more) load_values(stage, now, keys);
      cp_async_commit();
      stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
    }
  }

  // Leaves the output in the warp's shared memory, where its stages were, [16, kDimV] floats, and the rows' maxima and
  // sums in `control_`.
  __device__ void publish(char* shared) {
    const int g = lane_ / 4, t = lane_ % 4;
    float* const out = reinterpret_cast<float*>(shared + warp_ * Tile::kWarpBytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sum_[half];
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      const int row = g + 8 * half;
      if (t == 0) {
        control_.max[warp_][row] = max_[half] == minus_infinity() ? minus_infinity() : max_[half] * scale_.scale;
        control_.sum[warp_][row] = sum;
      }
      if (row >= item_.rows) continue;
#pragma unroll
      for (int n = 0; n < kDimV / 8; ++n) {
        *reinterpret_cast<float2*>(out + row * kDimV + 8 * n + 2 * t) = {out_[n][2 * half], out_[n][2 * half + 1]};
      }
    }
  }

 private:
  // Loads are committed in the order K, V, K, V, ..., 2 * kStages groups ahead of their use.
  __device__ void wait() {
    cp_async_wait<2 * Tile::kStages - 1>();
    __syncwarp();
  }

  __device__ void load_keys(int stage, const KeyRows& rows, const KeyRange& keys) {
    rows.load<kDim>(shared_ + stage * Tile::kStageBytes, memory_.k, p_.k_page_stride, p_.k_row_stride, p_, keys, lane_);
  }
  __device__ void load_values(int stage, const KeyRows& rows, const KeyRange& keys) {
    rows.load<kDimV>(shared_ + stage * Tile::kStageBytes + Tile::kKeyBytes, memory_.v, p_.v_page_stride,
                     p_.v_row_stride, p_, keys, lane_);
  }

  // scores = Q K^T of the 16 keys, in two halves of 8.
  __device__ void multiply_keys(int stage) {
    const int row = (lane_ & 7) + ((lane_ >> 4) << 3);
    const uint32_t address = shared_ + stage * Tile::kStageBytes + RowsK::offset(row, (lane_ >> 3) & 1);
#pragma unroll
    for (int n = 0; n < 2; ++n) scores_[n][0] = scores_[n][1] = scores_[n][2] = scores_[n][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t b[4];
      load_matrices(b, RowsK::piece_pair(address, k));
      uint32_t a[4];
      if constexpr (Tile::kSharedQueries) {
        *reinterpret_cast<uint4*>(a) = control_.queries[k][lane_];
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) a[j] = q_[k][j];
      }
      mma_m16n8k16<T>(scores_[0], a, b[0], b[1]);
      mma_m16n8k16<T>(scores_[1], a, b[2], b[3]);
    }
  }

  __device__ void transform(const ScoreScale& scale) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) scores_[n][j] = scale.transform(scores_[n][j]);
    }
  }

  __device__ void mask(int key, const KeyRange& keys) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = key + 8 * n + 2 * (lane_ % 4) + (j & 1);
        const KeyRange& row = visible_[j >> 1];
        if (at < max(row.begin, keys.begin) || at >= min(row.end, keys.end)) scores_[n][j] = minus_infinity();
      }
    }
  }

  __device__ void softmax(float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float block_max = fmaxf(fmaxf(scores_[0][2 * half], scores_[0][2 * half + 1]),
                              fmaxf(scores_[1][2 * half], scores_[1][2 * half + 1]));
      block_max = fmaxf(block_max, __shfl_xor_sync(kFullWarp, block_max, 1));
      block_max = fmaxf(block_max, __shfl_xor_sync(kFullWarp, block_max, 2));
      const float new_max = fmaxf(max_[half], block_max);
      const float shift = new_max == minus_infinity() ? 0.0f : new_max * scale;
      // Exactly 1 when the maximum stays: keys that a row doesn't see must change no bit of it.
      const float keep = new_max == max_[half] ? 1.0f : exp2_approx((max_[half] - new_max) * scale);
      max_[half] = new_max;
      sum_[half] *= keep;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int j = 2 * half; j < 2 * half + 2; ++j) {
          scores_[n][j] = exp2_approx(fmaf(scores_[n][j], scale, -shift));
          sum_[half] += scores_[n][j];
        }
      }
#pragma unroll
      for (int n = 0; n < kDimV / 8; ++n) {
        out_[n][2 * half] *= keep;
        out_[n][2 * half + 1] *= keep;
      }
    }
  }

  // out += P V.
  __device__ void multiply_values(int stage) {
    const int row = lane_ & 15;
    const uint32_t address = shared_ + stage * Tile::kStageBytes + Tile::kKeyBytes + RowsV::offset(row, lane_ >> 4);
    const uint32_t weights[4] = {pack<T>(scores_[0][0], scores_[0][1]), pack<T>(scores_[0][2], scores_[0][3]),
                                 pack<T>(scores_[1][0], scores_[1][1]), pack<T>(scores_[1][2], scores_[1][3])};
#pragma unroll
    for (int n = 0; n < kDimV / 16; ++n) {
      uint32_t b[4];
      load_matrices_transposed(b, RowsV::piece_pair(address, n));
      mma_m16n8k16<T>(out_[2 * n], weights, b[0], b[1]);
      mma_m16n8k16<T>(out_[2 * n + 1], weights, b[2], b[3]);
    }
  }

  const KernelParams& p_;
  const WorkItem& item_;
  const KeyMemory memory_;
  const ScoreScale scale_;
  typename Tile::Control& control_;
  const int lane_;
  const int warp_;
  const uint32_t shared_;
  KeyRange visible_[2];  // of rows lane / 4 and lane / 4 + 8
  uint32_t q_[Tile::kSharedQueries ? 1 : kDim / 16][4];
  float scores_[2][4];
  float out_[kDimV / 8][4];
  float max_[2];  // of q.k, before the scale
  float sum_[2];  // of this lane's keys
};

// Elements d .. d + 3 of a row over the keys of all four warps, normalised.
template <int kDim, int kDimV>
__device__ inline float4 merge_warps(const char* shared, const typename DecodeTile<kDim, kDimV>::Control& control,
                                     int row, int d, float v_scale, float& lse) {
  using Tile = DecodeTile<kDim, kDimV>;
  float max = control.max[0][row];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) max = fmaxf(max, control.max[w][row]);
  lse = minus_infinity();
  if (max == minus_infinity()) return {};
  float sum = 0.0f;
  float4 out{};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float weight = exp2_approx(control.max[w][row] - max);
    const float4 part = *reinterpret_cast<const float4*>(shared + w * Tile::kWarpBytes + 4 * (row * kDimV + d));
    sum = fmaf(control.sum[w][row], weight, sum);
    fold(out, part, {1.0f, weight});
  }
  lse = (max + log2f(sum)) * kLn2;
  const float factor = __fdividef(v_scale, sum);
  return {out.x * factor, out.y * factor, out.z * factor, out.w * factor};
}

template <typename T, int kDim, int kDimV>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) decode_kernel(const __grid_constant__ KernelParams p) {
  using Tile = DecodeTile<kDim, kDimV>;
  extern __shared__ __align__(1024) char shared[];
  auto& control = *reinterpret_cast<typename Tile::Control*>(shared + kWarps * Tile::kWarpBytes);
  if (static_cast<int>(blockIdx.x) >= p.header->num_items) return;
  if (threadIdx.x == 0) {
    control.count = p.header->num_items;
    control.items[0] = p.items[blockIdx.x];
  }
  __syncthreads();
  for (int current = 0;; current = current == 2 ? 0 : current + 1) {
    const int after = current == 2 ? 0 : current + 1;
    const int next = take_ticket(p, control.count);
    const WorkItem& item = control.items[current];
    DecodeWarp<T, kDim, kDimV> warp(p, item, shared, control);
    warp.load_queries();
    if constexpr (Tile::kSharedQueries) __syncthreads();
    const float v_scale = value_scale(p, item);

    // With a fixed split size the keys are cut at its multiples, whoever computes the pieces.
    const int split = p.split_size > 0 ? p.split_size : max(item.key_end, 1);
    const int first_origin = item.key_begin / split * split;
    for (int origin = first_origin; origin < item.key_end || origin == first_origin;) {
      const int end = item.key_end - origin > split ? origin + split : item.key_end;
      const bool first = origin == first_origin, last = end >= item.key_end;
      warp.attend({max(item.key_begin, origin), end}, origin);
      if (first && threadIdx.x == 0) {
        control.numbers[current] = next;
        if (next < control.count) control.items[after] = p.items[next];
      }
      warp.publish(shared);
      __syncthreads();
      for (int i = threadIdx.x; i < item.rows * kDimV / 4; i += kThreads) {
        const int row = i / (kDimV / 4), d = 4 * (i % (kDimV / 4));
        float lse;
        const float4 out = merge_warps<kDim, kDimV>(shared, control, row, d, v_scale, lse);
        if (item.parts > 1) {
          *partial_out<kDimV>(p, item.slot, row, d) = out;
          if (d == 0) *partial_lse(p, item.slot, row) = lse;
          continue;
        }
        Fold state;
        float4 merged{};
        // Each thread keeps its own share, so no barrier is needed around it.
        float* const kept = first && last ? nullptr : p.fold_state + int64_t{blockIdx.x} * Tile::kFoldFloats + 6 * i;
        if (!first) {
          merged = {kept[0], kept[1], kept[2], kept[3]};
          state.max = kept[4];
          state.sum = kept[5];
        }
        fold(merged, out, state.add(lse));
        if (last) {
          finish_row<T>(p, item, row, d, merged, state);
        } else {
          kept[0] = merged.x, kept[1] = merged.y, kept[2] = merged.z, kept[3] = merged.w;
          kept[4] = state.max, kept[5] = state.sum;
        }
      }
      __syncthreads();  // the shared memory is read; the next keys may come
      if (last) break;
      origin = end;
    }
    if (item.parts > 1) arrive_and_merge<T, kDimV>(p, item, &control.last);
    if (control.numbers[current] >= control.count) break;
  }
  leave_tickets(p, control.count);
}

}  // namespace onepass::portable
