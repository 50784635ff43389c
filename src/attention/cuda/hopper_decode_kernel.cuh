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

  // scores += K's dimensions of this unit times Q's. A single tile's products go to two sums, for two chains of them.
  __device__ __forceinline__ void multiply_k(int part, uint32_t unit, float (&scores)[2][kColumnTiles][4]) const {
    const int lane = threadIdx.x % 32;
    const uint32_t address = unit + (lane % 16) * 128 + ((lane / 16) ^ (lane % 8)) * 16;
    float second[R::kChunkTiles][kColumnTiles][4] = {};  // of a pair's second head
#pragma unroll
    for (int tile = 0; tile < R::kChunkTiles; ++tile)
#pragma unroll
      for (int s = 0; s < R::kUnitDims / 16; ++s) {
        uint32_t k[4];
        load_matrices(k, (address ^ (s % 4 * 32)) + s / 4 * R::kPanelBytes + tile * 16 * 128);
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          const int step = (part * (R::kUnitDims / 16) + s) % kQuerySteps;
          float(&sum)[4] =
              R::kPairs && s >= kQuerySteps ? second[tile][n] : scores[R::kChunkTiles == 1 ? s % 2 : tile][n];
          mma_m16n8k16<Element<kBf16>>(sum, k, q[step][n][0], q[step][n][1]);
        }
      }
    if constexpr (R::kPairs) {
      static_assert(R::kChunkTiles == 2);
#pragma unroll
      for (int tile = 0; tile < R::kChunkTiles; ++tile)
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (second_head[n][c % 2]) scores[tile][n][c] = second[tile][n][c];
          }
    }
  }

  // A tile's scores, of keys first_key + g and + 8, made ready: scaled, capped, masked. Whether one is far above its
  // maximum.
  __device__ __forceinline__ bool prepare(const RunArgs& args, int first_key, bool masked,
                                          float (&scores)[kColumnTiles][4]) const {
    bool larger = false;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float x = scores[n][c] * args.score_scale;
        if (args.softcap > 0.0f) x = capped(x, args.softcap * kLog2E);
        if (masked) {
          const int key = first_key + threadIdx.x % 32 / 4 + c / 2 * 8;
          const KeyRange seen = range[n][c % 2];
          if (key < seen.lo || key > seen.hi) x = -INFINITY;
        }
        scores[n][c] = x;
        larger |= x > max[n][c % 2] + 8.0f;
      }
    return larger;
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
    bool larger = false;
#pragma unroll
    for (int tile = 0; tile < R::kChunkTiles; ++tile) {
      larger |= prepare(args, first_key + 16 * tile, masked, scores[tile]);
    }
    // The maximum need not be exact, so long as nothing overflows: it moves, and the output is rescaled, only when a
    // score exceeds it by a factor of 2^8. After the first keys that is rare.
    if (__any_sync(~0u, larger)) move_maximum(scores);
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
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32,
              rows = item.seqlen_q * static_cast<int>(args.group.value);
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float all = sum[n][c];
        for (int distance = 4; distance < 32; distance *= 2) all += __shfl_xor_sync(~0u, all, distance);
        if (lane < 4) shared.sums[warp][8 * n + 2 * lane + c] = make_float2(max[n][c], all);
      }
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int u = 0; u < R::kUnitsOfRow; ++u) {
        if (n + u > 0)
          __syncthreads();  // the last tile has been read; the last item's end has seen to it before the first
#pragma unroll
        for (int s = 0; s < R::kUnitDims / 16; ++s)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            shared.out[warp][lane % 4 * 2 + c % 2][16 * s + lane / 4 + c / 2 * 8] =
                out[u * (R::kUnitDims / 16) + s][n][c];
          }
        __syncthreads();
        constexpr int kVectors = R::kUnitDims / 4;
        for (int i = threadIdx.x; i < R::kTeamWarps * 8 * kVectors; i += kWarps * 32) {
          const int member = i / (8 * kVectors), row = i / kVectors % 8, d = i % kVectors * 4;
          const int item_row = (member * kColumnTiles + n) * 8 + row;
          if (item_row >= rows) break;
          float2 sums[R::kTeams];
          float all_max = kNoScore, all_sum = 0.0f;
#pragma unroll
          for (int team = 0; team < R::kTeams; ++team) {
            sums[team] = shared.sums[team * R::kTeamWarps + member][8 * n + row];
            all_max = fmaxf(all_max, sums[team].x);
          }
          float4 total = {};
#pragma unroll
          for (int team = 0; team < R::kTeams; ++team) {
            const float weight = exp2_approx(sums[team].x - all_max);
            all_sum += weight * sums[team].y;
            add(total, weight, *reinterpret_cast<const float4*>(&shared.out[team * R::kTeamWarps + member][row][d]));
          }
          if (R::kPairs && (d >= R::kQueryDim) != of_second_head(args, item_row)) continue;
          const int out_d = R::kPairs ? d % R::kQueryDim : u * R::kUnitDims + d;
          if (item.parts == 1) {
            write_out<kBf16>(args, item, item_row, out_d, total,
                             normalizer(args, item, item_row, all_max, all_sum, out_d == 0));
          } else {
            write_part<R::kQueryDim>(args, item, item_row, out_d, total, all_max, all_sum);
          }
        }
      }
    __syncthreads();
  }

 private:
  static __device__ __forceinline__ bool of_second_head(const RunArgs& args, int row) {
    const int group = args.group.value;
    return 2 * (row - divide(row, args.group) * group) >= group;
  }

  // softcap * tanh(x), times log2(e): the exponential is exact to float32, where tanh.approx would cost 11 bits.
  static __device__ __forceinline__ float capped(float x, float scale) {
    return scale - __fdividef(2.0f * scale, exp2_approx(2.0f * kLog2E * x) + 1.0f);
  }

  __device__ __forceinline__ void move_maximum(const float (&scores)[2][kColumnTiles][4]) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float largest = max[n][c];
#pragma unroll
        for (int tile = 0; tile < R::kChunkTiles; ++tile) {
          largest = fmaxf(largest, fmaxf(scores[tile][n][c], scores[tile][n][c + 2]));
        }
        for (int distance = 4; distance < 32; distance *= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
        }
        if (largest <= max[n][c] + 8.0f) continue;  // each row by itself, so that no row's bits depend on another's
        const float factor = exp2_approx(max[n][c] - largest);
        max[n][c] = largest;
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
        hopper::store_shared_16(unit + panel * R::kPanelBytes + row * 128 + i, {});
      }
    hopper::fence_async_proxy();
  }
  __syncwarp();
}

// What a thread block does, by the plan that `first` was read from.
template <typename R, int kColumnTiles, bool kBf16>
__device__ __forceinline__ void work(const RunArgs& args, const Place& place, const FirstItem& first,
                                     uint8_t* shared_bytes) {
  using State = WarpState<R, kColumnTiles, kBf16>;
  constexpr bool kBoxes = R::kBoxes;
  auto& shared = *reinterpret_cast<typename State::Shared*>(shared_bytes);
  const uint32_t full = shared_address(shared.full[R::team()]);
  if (kBoxes) R::init_my_barriers(full, /*again=*/false);
  const int row_begin = threadIdx.x / 32 % R::kTeamWarps * kColumnTiles * 8;  // of this warp

  // The plan and the page table are read before the kernels that may write them are known to be over. What they say is
  // checked, so that nothing outside the arrays is touched, and at first taken as true: their round trips to memory are
  // over when this kernel may begin. Then they are read again and, if they have changed, so are the first chunks.
  // What is to be done between the wait and the first copies is worked out before.
  Opening<R> opening(first);
  Loader<R> loader(args, place, opening);
  State state;
  const auto open = [&](bool hinted) {
    opening.look_up_pages(args, place, hinted);
    state.find_q(args, opening.item, opening.item.head_kv + place.head, row_begin);
    state.begin(args, opening.item, row_begin);
    loader.restart();
  };
  if (args.total_kv_rows > 0) open(/*hinted=*/true);
  if (opening.sound) {
    opening.prefetch(args, place);
    loader.prepare();
  }
  wait_for_earlier_kernels();
  bool up_to_date = !opening.sound;
  SecondReading<R> second;
  if (up_to_date) {
    opening.read(place);
    open(/*hinted=*/false);
  } else {
    second.read(place, opening);
  }
  state.load_q(args);

  const uint32_t ring = shared_address(shared.ring[R::team()]);
#pragma unroll 1
  for (int i = 0; i < R::kUnits || !up_to_date;) {
    if (!up_to_date && (i == R::kUnits || (i % R::kUnitsOfChunk == 0 && !loader.opening_has_next()))) {
      up_to_date = true;
      if (second.same_as(opening)) continue;
      if constexpr (kBoxes) {
        for (int unit = 0; unit < i; ++unit) hopper::barrier_wait(R::my_barrier(full, unit), 0);
        R::init_my_barriers(full, /*again=*/true);
      } else {
        wait_for_copies<0>();
      }
      opening.read(place);
      open(/*hinted=*/false);
      state.load_q(args);
      i = 0;
      continue;
    }
    if (!loader.issue(i % R::kUnitsOfChunk, ring + i * R::kUnitBytes, R::my_barrier(full, i)) && kBoxes) break;
    ++i;
  }
  if (kBoxes && R::kTeamWarps > 1) R::sync_team();  // no barrier is made new any more
  const int num_items = opening.num_items;

  int slot = 0;  // the oldest unit of the ring
  uint32_t phase = 0;
  for (int i = 0; i < num_items; ++i) {
    const Item item = i == 0 ? place.for_head(args, opening.item) : place.load_item(args, opening.next_item, i);
    if (i > 0) {
      state.find_q(args, item, item.head_kv, row_begin);
      state.load_q(args);
      state.begin(args, item, row_begin);
    }
    for (int chunk = item.block_begin * R::kChunksOfBlock + R::team(); chunk < item.block_end * R::kChunksOfBlock;
         chunk += R::kTeams) {
      const int first_key = chunk * R::kChunkKeys;
      const bool active = first_key < item.some_hi && first_key + R::kChunkKeys > item.some_lo;
      const bool masked = first_key < item.all_lo || first_key + R::kChunkKeys > item.all_hi;
      float scores[2][kColumnTiles][4] = {};
      uint32_t weights[R::kChunkTiles][kColumnTiles][2];
      // K and V in one loop's body: code that is short stays in the instruction cache.
#pragma unroll(R::kUnitsOfRow == 1 ? 1 : R::kUnitsOfChunk)
      for (int part = 0; part < R::kUnitsOfChunk; ++part) {
        const uint32_t unit = ring + slot * R::kUnitBytes;
        if constexpr (kBoxes) {
          R::wait_for_unit(full, slot, phase);
        } else {
          wait_for_copies<R::kUnits - 1>();
          R::sync_team();
        }
        if (active && part < R::kUnitsOfRow) state.multiply_k(R::kUnitsOfRow == 1 ? 0 : part, unit, scores);
        if (active && part >= R::kUnitsOfRow) {
          if (kBoxes) zero_unseen<R>(item, first_key, unit);
          state.multiply_v(R::kUnitsOfRow == 1 ? 0 : part - R::kUnitsOfRow, unit, weights);
        }
        R::sync_team();
        loader.issue((part + R::kUnits) % R::kUnitsOfChunk, unit, R::my_barrier(full, slot));
        if (++slot == R::kUnits) {
          slot = 0;
          phase ^= 1;
        }
        if (active && part == R::kUnitsOfRow - 1) state.weigh(args, first_key, masked, scores, weights);
      }
    }
    state.finish(args, item, shared);
  }

  // The merge waits only for blocks of lower numbers, which have begun before this one.
  for (int i = 0; i < num_items; ++i) {
    const Item item = i == 0 ? place.for_head(args, opening.item) : place.load_item(args, opening.next_item, i);
    if (item.parts > 1 && item.part == item.parts - 1 && (item.merge_heads == 1 || place.head % 2 == 1)) {
      merge_parts<R::kQueryDim, kBf16>(args, item, shared.ring[0]);
    }
  }
}

// `Short` is for workers with few keys.
template <typename R, typename Short, int kColumnTiles, bool kBf16>
__global__ void __launch_bounds__(kWarps * 32, 1) decode_kernel(const __grid_constant__ RunArgs args) {
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  constexpr bool kHasShort = !std::is_same_v<R, Short>;
  // The copy engine fetches a tensor map from memory, too. Which of them it will be is not known yet.
  if (R::kBoxes && threadIdx.x == 0) {
    const auto prefetch = [](const BoxMaps& maps) {
      hopper::prefetch_tensor_map(&maps.k);
      hopper::prefetch_tensor_map(&maps.v);
    };
    prefetch(args.boxes);
    prefetch(args.near_boxes);
    if (kHasShort && args.has_short_boxes) prefetch(args.short_boxes);
  }
  const Place place(args);
  FirstItem first = {};
  if (args.total_kv_rows > 0) {
    first.read(place);
    if (R::kBoxes) first.read_pages<R::kTeamWarps>(place);
  }
  if (kHasShort && args.has_short_boxes && first.blocks > kTooFewBlocks && first.blocks <= kShortBlocks) {
    work<Short, kColumnTiles, kBf16>(args, place, first, shared_bytes);
  } else {
    work<R, kColumnTiles, kBf16>(args, place, first, shared_bytes);
  }
}

}  // namespace onepass::hopper_decode
