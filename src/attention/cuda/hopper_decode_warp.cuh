// The decode kernel: mma.sync with the keys on M = 16 and the packed query rows on N = 8, so that eight rows (one token
// of eight query heads, say) waste nothing:
//   S^T [16 keys][8 rows] = K [16 keys][head_dim] Q^T,   O^T [head_dim][8 rows] += V^T [head_dim][16 keys] P^T.
// Each of the eight warps walks over its own chunks of keys with its own maximum, sum and output; they meet at the end
// of an item, and not before.
#pragma once

#include <cuda_runtime.h>

#include "attention/cuda/hopper_decode_merge.cuh"

namespace onepass::hopper_decode {

template <typename R, int kColumnTiles>
struct SharedMemory {
  static constexpr int kPaddedDims = R::kUnitDims + 4;  // rows 2t and 2t + 2 are 8 banks apart
  alignas(1024) uint8_t ring[R::kTeams][R::kBytes];
  float out[kWarps][8][kPaddedDims];  // a column tile and a unit's dimensions at a time
  float2 sums[kWarps][kColumnTiles * 8];
  uint64_t full[R::kTeams][R::kUnits * R::kTeamWarps];  // barriers of the ring's units
};

// What a warp knows of an item. Lane 4g + t holds rows 2t and 2t + 1 of each column tile.
//
// Where R's heads are pairs of KV heads, a row's scores are those with its own half of K. Its products with both halves
// of V are computed, which costs nothing in a tile of 8 rows that one head does not fill, and its own half is written.
template <typename R, int kColumnTiles, bool kBf16>
struct WarpState {
  using Shared = SharedMemory<R, kColumnTiles>;
  static constexpr int kSteps = R::kHeadDim / 16;
  static constexpr int kQuerySteps = R::kQueryDim / 16;

  int64_t q_from[kColumnTiles];
  uint32_t q[kQuerySteps][kColumnTiles][2];
  bool second_head[kColumnTiles][2];
  float out[kSteps][kColumnTiles][4];
  float max[kColumnTiles][2];  // what weights are relative to: at most 2^8 below the true maximum
  float sum[kColumnTiles][2];  // of this lane's keys
  KeyRange range[kColumnTiles][2];

  // Where this lane's rows of Q are; negative: there is none. `head_kv` is apart from the item's, as it is while what
  // the opening says is only taken as true.
  __device__ __forceinline__ void find_q(const RunArgs& args, const Item& item, int head_kv, int row_begin) {
    const int lane = threadIdx.x % 32, rows = item.seqlen_q * static_cast<int>(args.group.value);
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const int row = row_begin + 8 * n + lane / 4;
      const int group = args.group.value, token = divide(row, args.group);
      q_from[n] = (item.q_begin + token) * args.q_row_stride +
                  (head_kv * group + row - token * group) * args.q_head_stride + lane % 4 * 2;
      if (row >= rows) q_from[n] = -1;
      keep_here(q_from[n]);
    }
  }

  __device__ __forceinline__ void load_q(const RunArgs& args) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int s = 0; s < kQuerySteps; ++s) {
        const auto* from = reinterpret_cast<const uint32_t*>(args.q + q_from[n] + 16 * s);
        q[s][n][0] = q_from[n] >= 0 ? from[0] : 0;
        q[s][n][1] = q_from[n] >= 0 ? from[4] : 0;
      }
  }

  __device__ __forceinline__ void begin(const RunArgs& args, const Item& item, int row_begin) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        max[n][c] = kNoScore;
        sum[n][c] = 0.0f;
        const int row = row_begin + 8 * n + lane % 4 * 2 + c, row_token = divide(row, args.group);
        second_head[n][c] = R::kPairs && of_second_head(args, row);
        range[n][c] = visible_keys(args.mask, item.seqlen_k - item.seqlen_q + row_token, item.seqlen_k);
      }
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) out[s][n][c] = 0.0f;
  }

  // scores += K's dimensions of this unit times Q's. A tile's products go to two sums, for two chains of them.
  __device__ __forceinline__ void multiply_k(int part, uint32_t unit, float (&scores)[2][kColumnTiles][4]) const {
    const int lane = threadIdx.x % 32;
    const uint32_t address = unit + (lane % 16) * 128 + ((lane / 16) ^ (lane % 8)) * 16;
    float second[R::kChunkTiles][kColumnTiles][4] = {};  // of a pair's second head, or of every other step
#pragma unroll
    for (int tile = 0; tile < R::kChunkTiles; ++tile)
#pragma unroll
      for (int s = 0; s < R::kUnitDims / 16; ++s) {
        uint32_t k[4];
        load_matrices(k, (address ^ (s % 4 * 32)) + s / 4 * R::kPanelBytes + tile * 16 * 128);
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          const int step = (part * (R::kUnitDims / 16) + s) % kQuerySteps;
          const bool to_second = R::kPairs ? s >= kQuerySteps : R::kChunkTiles == 2 && s % 2 == 1;
          float(&sum)[4] = to_second ? second[tile][n] : scores[R::kChunkTiles == 1 ? s % 2 : tile][n];
          mma_m16n8k16<Element<kBf16>>(sum, k, q[step][n][0], q[step][n][1]);
        }
      }
    if constexpr (R::kChunkTiles == 2) {
#pragma unroll
      for (int tile = 0; tile < R::kChunkTiles; ++tile)
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (!R::kPairs) scores[tile][n][c] += second[tile][n][c];
            if (R::kPairs && second_head[n][c % 2]) scores[tile][n][c] = second[tile][n][c];
          }
    }
    static_assert(!R::kPairs || R::kChunkTiles == 2);
  }

  // softcap * tanh(x), times log2(e): the exponential is exact to float32, where tanh.approx would cost 11 bits.
  __device__ __forceinline__ void cap(float softcap, float (&scores)[kColumnTiles][4]) const {
    float limit = softcap * kLog2E;
    keep_here(limit);  // a branch: what is predicated off takes its time too
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        scores[n][c] = limit - __fdividef(2.0f * limit, exp2_approx(2.0f * kLog2E * scores[n][c]) + 1.0f);
      }
  }

  // Of keys first_key + g and + 8.
  __device__ __forceinline__ void mask(int first_key, float (&scores)[kColumnTiles][4]) const {
    keep_here(first_key);  // 80 comparisons and more would otherwise stand before the first products, masked or not
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int key = first_key + threadIdx.x % 32 / 4 + c / 2 * 8;
        const KeyRange seen = range[n][c % 2];
        if (key < seen.lo || key > seen.hi) scores[n][c] = -INFINITY;
      }
  }

  // Scores to weights (P^T, ready as the second factor of the product with V^T).
  __device__ __forceinline__ void weigh(const RunArgs& args, int first_key, bool masked,
                                        float (&scores)[2][kColumnTiles][4],
                                        uint32_t (&weights)[R::kChunkTiles][kColumnTiles][2]) {
    if constexpr (R::kChunkTiles == 1) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[0][n][c] += scores[1][n][c];
    }
#pragma unroll
    for (int tile = 0; tile < R::kChunkTiles; ++tile)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[tile][n][c] *= args.score_scale;
    if (args.softcap > 0.0f) {
#pragma unroll
      for (int tile = 0; tile < R::kChunkTiles; ++tile) cap(args.softcap, scores[tile]);
    }
    if (masked) {
#pragma unroll
      for (int tile = 0; tile < R::kChunkTiles; ++tile) mask(first_key + 16 * tile, scores[tile]);
    }
    float largest[kColumnTiles][2];  // of this lane's
    bool larger = false;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        largest[n][c] = fmaxf(scores[0][n][c], scores[0][n][c + 2]);
        if (R::kChunkTiles == 2) largest[n][c] = fmaxf(largest[n][c], fmaxf(scores[1][n][c], scores[1][n][c + 2]));
        larger |= largest[n][c] > max[n][c] + 8.0f;
      }
    // The maximum need not be exact, so long as nothing overflows: it moves, and the output is rescaled, only when a
    // score exceeds it by a factor of 2^8. After the first keys that is rare.
    if (__any_sync(~0u, larger)) move_maximum(largest);
#pragma unroll
    for (int tile = 0; tile < R::kChunkTiles; ++tile)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        float(&x)[4] = scores[tile][n];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          x[c] = exp2_approx(x[c] - max[n][c % 2]);
          sum[n][c % 2] += x[c];
        }
        weights[tile][n][0] = transpose(pack<Element<kBf16>>(x[0], x[1]));
        weights[tile][n][1] = transpose(pack<Element<kBf16>>(x[2], x[3]));
      }
  }

  // out += V's dimensions of this unit, transposed, times the weights.
  __device__ __forceinline__ void multiply_v(int part, uint32_t unit,
                                             const uint32_t (&weights)[R::kChunkTiles][kColumnTiles][2]) {
    const int lane = threadIdx.x % 32;
    const uint32_t address = unit + (lane % 8 + lane / 16 * 8) * 128 + ((lane / 8 % 2) ^ (lane % 8)) * 16;
#pragma unroll
    for (int tile = 0; tile < R::kChunkTiles; ++tile)
#pragma unroll
      for (int s = 0; s < R::kUnitDims / 16; ++s) {
        uint32_t v[4];
        load_matrices_transposed(v, (address ^ (s % 4 * 32)) + s / 4 * R::kPanelBytes + tile * 16 * 128);
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          mma_m16n8k16<Element<kBf16>>(out[part * (R::kUnitDims / 16) + s][n], v, weights[tile][n][0],
                                       weights[tile][n][1]);
        }
      }
  }

  // All warps: adds up what the teams have and writes it, to `out` or to the part's slot.
  __device__ __forceinline__ void finish(const RunArgs& args, const Item& item, Shared& shared) {
    const int rows = item.seqlen_q * static_cast<int>(args.group.value);
    // Where no more than half of the teams have had keys, the others stay out of it.
    constexpr int kFewTeams = R::kTeams > 4 ? 4 : R::kTeams;
    const bool few = (item.block_end - item.block_begin) * R::kChunksOfBlock <= kFewTeams;
    const bool takes_part = !few || R::team() < kFewTeams;
    if (takes_part) show_sums(shared);
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int u = 0; u < R::kUnitsOfRow; ++u) {
        if (n + u > 0)
          __syncthreads();  // the last tile has been read; the last item's end has seen to it before the first
        if (takes_part) show_out(n, u, shared);
        __syncthreads();
        constexpr int kVectors = R::kUnitDims / 4;
        for (int i = threadIdx.x; i < R::kTeamWarps * 8 * kVectors; i += kWarps * 32) {
          const int member = i / (8 * kVectors), row = i / kVectors % 8, d = i % kVectors * 4;
          const int item_row = (member * kColumnTiles + n) * 8 + row;
          if (item_row >= rows) break;
          float all_max, all_sum;
          const float4 total = few ? add_up<kFewTeams>(shared, member, n, row, d, all_max, all_sum)
                                   : add_up<R::kTeams>(shared, member, n, row, d, all_max, all_sum);
          if (R::kPairs && (d >= R::kQueryDim) != of_second_head(args, item_row)) continue;
          const int out_d = R::kPairs ? d % R::kQueryDim : u * R::kUnitDims + d;
          if (item.parts == 1) {
            const RowEnd end = end_row(args, item, item_row, all_max, all_sum);
            write_out<kBf16>(args, item, item_row, out_d, total, end.factor);
            if (out_d == 0) write_lse(args, item, item_row, end);
          } else {
            write_part<R::kQueryDim>(args, item, item_row, out_d, total, all_max, all_sum);
          }
        }
      }
    __syncthreads();
  }

 private:
  // What all warps are to know of this one's rows: maxima and sums, and a column tile's and a unit's part of the
  // output.
  __device__ __forceinline__ void show_sums(Shared& shared) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float all = sum[n][c];
        for (int distance = 4; distance < 32; distance *= 2) all += __shfl_xor_sync(~0u, all, distance);
        if (lane < 4) shared.sums[warp][8 * n + 2 * lane + c] = make_float2(max[n][c], all);
      }
  }

  __device__ __forceinline__ void show_out(int n, int u, Shared& shared) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int s = 0; s < R::kUnitDims / 16; ++s)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        shared.out[warp][lane % 4 * 2 + c % 2][16 * s + lane / 4 + c / 2 * 8] = out[u * (R::kUnitDims / 16) + s][n][c];
      }
  }

  // Numbers d to d + 3 of what the first teams show of a row.
  template <int kCount>
  static __device__ __forceinline__ float4 add_up(const Shared& shared, int member, int n, int row, int d, float& max,
                                                  float& sum) {
    float2 sums[kCount];
    max = kNoScore;
#pragma unroll
    for (int team = 0; team < kCount; ++team) {
      sums[team] = shared.sums[team * R::kTeamWarps + member][8 * n + row];
      max = fmaxf(max, sums[team].x);
    }
    sum = 0.0f;
    float4 total = {};
#pragma unroll
    for (int team = 0; team < kCount; ++team) {
      const float weight = exp2_approx(sums[team].x - max);
      sum += weight * sums[team].y;
      add(total, weight, *reinterpret_cast<const float4*>(&shared.out[team * R::kTeamWarps + member][row][d]));
    }
    return total;
  }

  static __device__ __forceinline__ bool of_second_head(const RunArgs& args, int row) {
    const int group = args.group.value;
    return 2 * (row - divide(row, args.group) * group) >= group;
  }

  // `largest`: a lane's scores.
  __device__ __forceinline__ void move_maximum(float (&largest)[kColumnTiles][2]) {
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          largest[n][c] = fmaxf(largest[n][c], __shfl_xor_sync(~0u, largest[n][c], distance));
        }
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (largest[n][c] <= max[n][c] + 8.0f) continue;  // each row by itself: no row's bits depend on another's
        const float factor = exp2_approx(max[n][c] - largest[n][c]);
        const bool is_first = max[n][c] == kNoScore;  // then there is nothing to rescale
        max[n][c] = largest[n][c];
        if (is_first) continue;
        sum[n][c] *= factor;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          out[s][n][c] *= factor;
          out[s][n][c + 2] *= factor;
        }
      }
  }
};

// A box brings rows that no query sees too. They may hold NaN, which a weight of 0 does not make harmless: zeros
// instead.
template <typename R>
__device__ __forceinline__ void zero_unseen(const Item& item, int first_key, uint32_t unit) {
  if (first_key >= item.some_lo && first_key + R::kChunkKeys <= item.some_hi) return;
  const int row = threadIdx.x % R::kChunkKeys, key = first_key + row;
  if (key < item.some_lo || key >= item.some_hi) {
    for (int panel = 0; panel < R::kUnitDims / 64; ++panel)
      for (int i = 0; i < 128; i += 16) {
        store_shared_16(unit + panel * R::kPanelBytes + row * 128 + i, {});
      }
    hopper::fence_async_proxy();
  }
  __syncwarp();
}

}  // namespace onepass::hopper_decode
