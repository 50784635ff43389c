// Attention of one token of each request: the query's and the new key's norm and rotation, the new key and value into
// their page, the keys that lie in the cache from the ring, and the parts of one request from block to block.
//
// Warps take 16 keys at a time, keys on M = 16 and the group's query heads on N = 8 of the matrix instructions.
#pragma once

#include "attention/cuda/hopper_decode_ptx.cuh"
#include "kernels/cuda/rotation.cuh"
#include "models/cuda/layer_stack_product.cuh"

namespace onepass::layer_stack {

template <typename T, int kHeadDim>
class Attention {
  static constexpr int kPieces = kHeadDim / 32;  // of 8 elements that a lane has of a head: at 32 piece + 8 member
  static constexpr int kLanesOfRow = kHeadDim / 4;

 public:
  __device__ __forceinline__ Attention(const Block& block, RingReader& ring)
      : block_(block),
        ring_(ring),
        group_(block.args.p.shape.num_heads / block.args.p.shape.num_kv_heads),
        q_size_(block.args.p.shape.num_heads * kHeadDim) {}

  // Once, before the first layer: positions are those of the step.
  __device__ __forceinline__ void fill_angles() {
    const StackShape& shape = block_.args.p.shape;
    float2* const angles = block_.at<float2>(block_.args.shared.angles);
    for (int i = threadIdx.x; i < block_.rows() * (kHeadDim / 2); i += kConsumers) {
      const int row = i / (kHeadDim / 2), d = i % (kHeadDim / 2);
      angles[i] = rotation(block_.seqlens[row] - 1, shape.rope_inv_freq[d], shape.rope_attention_factor);
    }
  }
  // The layer's items, by one thread; seen after the consumers' next barrier.
  __device__ __forceinline__ void prepare(const StackLayer& layer) {
    const int window_left = static_cast<int>(layer.window_left);
    if (threadIdx.x == kConsumers - 1 && block_.items->window_left != window_left) list_items(block_, window_left);
  }
  __device__ __forceinline__ void run(const StackLayer& layer, unsigned char* set) {
    const ItemList& list = *block_.items;
#pragma unroll 1
    for (int i = 0; i < list.count; ++i) attend(layer, list.items[i], list.head, set);
      // After all items: those who wait for this block's parts need not wait for its merging.
#pragma unroll 1
    for (int i = 0; i < list.count; ++i) {
      if (list.items[i].parts > 1) merge(list.items[i], list.head, set);
    }
  }

 private:
  // --- A head in a lane's registers ---

  // Piece by piece, as registers are few.
  template <int kFirst, int kCount>
  __device__ __forceinline__ void normalize_and_rotate(uint4 (&words)[kCount], const float* norm, int row,
                                                       int member) const {
    float factor = 1.0f;
    if (norm != nullptr) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < kPieces; ++j) {
        float x[8];
        widen_piece(words[kFirst + j], x);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += x[i] * x[i];
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      factor = rms_norm_factor(sum, kHeadDim, block_.args.p.shape.norm_eps);
    }
    const float2* const angles = block_.at<float2>(block_.args.shared.angles) + row * (kHeadDim / 2) + member * 8;
#pragma unroll
    for (int j = 0; j < kPieces / 2; ++j) {
      float a[8], b[8];
      widen_piece(words[kFirst + j], a);
      widen_piece(words[kFirst + j + kPieces / 2], b);
      if (norm != nullptr) {
        scale_piece(a, factor, norm + j * 32 + member * 8);
        scale_piece(b, factor, norm + (j + kPieces / 2) * 32 + member * 8);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 angle = angles[j * 32 + i];
        const float x = a[i], y = b[i];
        a[i] = x * angle.x - y * angle.y;
        b[i] = y * angle.x + x * angle.y;
      }
      words[kFirst + j] = narrow_piece(a);
      words[kFirst + j + kPieces / 2] = narrow_piece(b);
    }
  }
  static __device__ __forceinline__ void scale_piece(float (&x)[8], float factor, const float* norm) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = widen(narrow<T>(x[i] * (factor * norm[i])));
  }

  static __device__ __forceinline__ void widen_piece(uint4 piece, float (&x)[8]) {
    const T* values = reinterpret_cast<const T*>(&piece);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = widen(values[i]);
  }
  static __device__ __forceinline__ uint4 narrow_piece(const float (&x)[8]) {
    return {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])};
  }

  // --- One request's keys of this block's share ---

  __device__ __forceinline__ void attend(const StackLayer& layer, const AttentionItem& item, int head,
                                         unsigned char* set) {
    const Place at(place_);
    const StackParams& p = block_.args.p;
    const int g = at.lane / 4, member = at.lane % 4;
    const bool has_row = g < group_;
    const BlockRows& qkv = block_.args.set.qkv;
    const PieceRows rows{set + qkv.at, block_.product(kQkv).of_block, kTileRows * 2, qkv.block_stride, qkv.row_stride};
    const int k_head = p.shape.num_heads + head, v_head = k_head + p.shape.num_kv_heads;
    const bool has_new_key = item.is_last && at.warp == kWarps - 1;
    const float* const norms = block_.at<float>(block_.args.shared.head_norms);

    // The query, and the new key and value.
    constexpr uint32_t kAll = (1u << kPieces) - 1;
    uint4 words[2 * kPieces + 1];
    const bool has_v = has_new_key && at.lane < kHeadDim / 8;
    const unsigned char* from[2 * kPieces + 1];
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      from[j] = rows.at(item.row, (head * group_ + g) * (kHeadDim / 8) + j * 4 + member);
      from[kPieces + j] = rows.at(item.row, k_head * (kHeadDim / 8) + j * 4 + member);
    }
    from[2 * kPieces] = rows.at(item.row, v_head * (kHeadDim / 8) + at.lane);
    await(words, (has_row ? kAll : 0) | (has_new_key ? kAll << kPieces : 0) | (has_v ? 1u << 2 * kPieces : 0),
          [&](int n) { return from[n]; });
    normalize_and_rotate<0>(words, layer.q_norm == nullptr ? nullptr : norms, item.row, member);
    uint4 q[kPieces];
#pragma unroll
    for (int j = 0; j < kPieces; ++j) q[j] = words[j];
    State state;
    if (has_new_key) {
      normalize_and_rotate<kPieces>(words, layer.k_norm == nullptr ? nullptr : norms + kHeadDim, item.row, member);
      uint4 new_k[kPieces];
#pragma unroll
      for (int j = 0; j < kPieces; ++j) new_k[j] = words[kPieces + j];
      store_new(at, layer, item.row, head, new_k, words[2 * kPieces]);
      begin_with(at, q, new_k, words[2 * kPieces], state);
    }

    // Each half of the warps takes every other block of 64 keys, each of its warps 16 of them.
    int turn = 0;
#pragma unroll 1
    for (int block = item.first_block; block < item.end_block; ++block, turn ^= 1) {
      const int mine = block * kKeys + at.warp % 4 * 16;
      if (at.warp / 4 == turn && mine < item.high && mine + 16 > item.low) {
        attend_16(at, q, item.low - mine, item.high - mine, state);
      } else {
        ring_.skip();
        ring_.skip();
      }
    }
    meet(at, item, head, state, set);
  }

  // What a warp knows of its keys: lane 4 g + member has rows 2 member and 2 member + 1, and of them dimensions
  // 16 tile + g ([..][0], [..][1]) and the same + 8. The sums are those of this lane's keys.
  struct State {
    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    float out[kHeadDim / 16][4] = {};
  };

  __device__ __forceinline__ float scale() const { return block_.args.p.shape.softmax_scale * kLog2E; }

  // The new key is the first: dot products in registers.
  __device__ __forceinline__ void begin_with(const Place& at, const uint4 (&q)[kPieces], const uint4 (&k)[kPieces],
                                             uint4 v, State& state) {
    float score = 0.0f;  // of row g
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      float a[8], b[8];
      widen_piece(q[j], a);
      widen_piece(k[j], b);
#pragma unroll
      for (int i = 0; i < 8; ++i) score += a[i] * b[i];
    }
    score += __shfl_xor_sync(0xffffffffu, score, 1);
    score += __shfl_xor_sync(0xffffffffu, score, 2);
    const int g = at.lane / 4, member = at.lane % 4;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      state.max[c] = __shfl_sync(0xffffffffu, score, (2 * member + c) * 4) * scale();
      state.sum[c] = g == 0 ? 1.0f : 0.0f;
    }
    // The value by way of this warp's place for the meeting.
    T* const values = reinterpret_cast<T*>(meeting_row(at.warp * group_));
    if (at.lane < kHeadDim / 8) *reinterpret_cast<uint4*>(values + at.lane * 8) = v;
    __syncwarp();
#pragma unroll
    for (int tile = 0; tile < kHeadDim / 16; ++tile) {
      state.out[tile][0] = state.out[tile][1] = widen(values[tile * 16 + g]);
      state.out[tile][2] = state.out[tile][3] = widen(values[tile * 16 + 8 + g]);
    }
    __syncwarp();
  }

  // S^T [16 keys][8 rows] = K Q^T, O^T [head_dim][8 rows] += V^T P^T: of 16 keys those from `low` to before `high`
  // count. Panels of 64 dimensions, a key's 128 bytes in pieces of 16 that are swizzled by its number.
  __device__ __forceinline__ void attend_16(const Place& at, const uint4 (&q)[kPieces], int low, int high,
                                            State& state) {
    const int g = at.lane / 4, member = at.lane % 4;
    const uint32_t row_at = at.warp % 4 * 16 * 128;
    float scores[4] = {};  // keys g (0, 1) and g + 8, rows 2 member and 2 member + 1
    const uint32_t k_at = ring_.wait() + row_at + g * 128;
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      const uint32_t from = k_at + j / 2 * kPanelBytes + ((j % 2 * 4 + member) ^ g) * 16;
      const uint4 first = load_shared_16(from), second = load_shared_16(from + 8 * 128);
      mma_m16n8k16<T>(scores, {first.x, second.x, first.y, second.y}, q[j].x, q[j].y);
      mma_m16n8k16<T>(scores, {first.z, second.z, first.w, second.w}, q[j].z, q[j].w);
    }
    ring_.release();
    float factor[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float largest = state.max[c];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[2 * i + c];
        score = g + 8 * i >= low && g + 8 * i < high ? score * scale() : -INFINITY;
        largest = fmaxf(largest, score);
      }
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
      }
      factor[c] = exp2_approx(state.max[c] - largest);  // one of the keys counts: `largest` is finite
      state.max[c] = largest;
      state.sum[c] *= factor[c];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scores[2 * i + c] = exp2_approx(scores[2 * i + c] - largest);
        state.sum[c] += scores[2 * i + c];
      }
    }
    const uint32_t weights[2] = {hopper_decode::transpose(pack<T>(scores[0], scores[1])),
                                 hopper_decode::transpose(pack<T>(scores[2], scores[3]))};
    // Values of keys that do not count may be anything, and a weight of 0 does not make a NaN harmless.
    uint32_t counts[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = 8 * i + 2 * member;
      counts[i] = (key >= low && key < high ? 0xffffu : 0u) | (key + 1 >= low && key + 1 < high ? 0xffff0000u : 0u);
    }
    const int row = at.lane / 16 * 8 + at.lane % 8;
    const uint32_t v_at = ring_.wait() + row_at + row * 128;
#pragma unroll
    for (int tile = 0; tile < kHeadDim / 16; ++tile) {
      uint32_t v[4];
      load_matrices_transposed(v, v_at + tile / 4 * kPanelBytes + ((tile % 4 * 2 + at.lane / 8 % 2) ^ (row % 8)) * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[i] &= counts[i / 2];
        state.out[tile][i] *= factor[i % 2];
      }
      mma_m16n8k16<T>(state.out[tile], v, weights[0], weights[1]);
    }
    ring_.release();
  }

  // The new key, of which lanes 0 to 3 have all, and value into their page.
  __device__ __forceinline__ void store_new(const Place& at, const StackLayer& layer, int row, int head,
                                            const uint4 (&k)[kPieces], uint4 v) const {
    const StackParams& p = block_.args.p;
    const int64_t slot = __ldcg(reinterpret_cast<const long long*>(p.slots) + row);
    const int64_t to = slot * p.shape.row_stride + head * p.shape.head_stride;
    if (at.lane < 4) {
#pragma unroll
      for (int j = 0; j < kPieces; ++j) {
        *reinterpret_cast<uint4*>(static_cast<T*>(layer.k_pool) + to + j * 32 + at.lane * 8) = k[j];
      }
    }
    if (at.lane < kHeadDim / 8) *reinterpret_cast<uint4*>(static_cast<T*>(layer.v_pool) + to + at.lane * 8) = v;
  }

  // The warps' sums become one, which is the output or a part of it.
  __device__ __forceinline__ void meet(const Place& at, const AttentionItem& item, int head, const State& state,
                                       unsigned char* set) {
    const int g = at.lane / 4, member = at.lane % 4;
    float2* const stats = block_.at<float2>(block_.args.shared.stats);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float sum = state.sum[c];
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      const int of_row = 2 * member + c;
      if (of_row >= group_) continue;
      float* const mine = meeting_row(at.warp * group_ + of_row) + g;
#pragma unroll
      for (int tile = 0; tile < kHeadDim / 16; ++tile) {
        mine[tile * 16] = state.out[tile][c];
        mine[tile * 16 + 8] = state.out[tile][2 + c];
      }
      if (g == 0) stats[at.warp * kMatrixRows + of_row] = make_float2(state.max[c], sum);
    }
    sync_consumers();
    const int thread = at.warp * 32 + at.lane, row = thread / kLanesOfRow, d = thread % kLanesOfRow * 4;
    if (row < group_) {
      float2 of_warp[kWarps];
      float all_max = -INFINITY;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        of_warp[warp] = stats[warp * kMatrixRows + row];
        all_max = fmaxf(all_max, of_warp[warp].x);
      }
      float all_sum = 0.0f;
      float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        const float weight = exp2_approx(of_warp[warp].x - all_max);  // 0 for a warp without keys
        all_sum += weight * of_warp[warp].y;
        add(total, weight, *reinterpret_cast<const float4*>(meeting_row(warp * group_ + row) + d));
      }
      if (item.parts == 1) {
        write_out(item.row, head * group_ + row, d, total, all_sum, set);
      } else {
        unsigned char* const part = part_at(set, block_.index(), item.slot);
        store_relaxed_16(part + (row * kHeadDim + d) * 4, words(total));
        if (d == 0) {
          store_relaxed_16(part + (group_ * kHeadDim + row * 4) * 4, words(make_float4(all_max, all_sum, 0.0f, 0.0f)));
        }
      }
    }
    sync_consumers();  // before the next item's sums
  }

  // --- The parts of one request ---

  // Query heads are merged by the parts' blocks in turn, a warp for every eighth part.
  __device__ __forceinline__ void merge(const AttentionItem& item, int head, unsigned char* set) {
    const Place at(place_);
    const int d = at.lane * 4;
    float2* const stats = block_.at<float2>(block_.args.shared.stats);
    const int kv_heads = block_.args.p.shape.num_kv_heads;
#pragma unroll 1
    for (int row = item.part; row < group_; row += item.parts) {
      float max = -INFINITY, sum = 0.0f;
      float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
      for (int i = at.warp; i < item.parts; i += kWarps) {
        const unsigned char* const part =
            part_at(set, (item.first_worker + i) * kv_heads + head, i == 0 ? item.first_slot : 0);
        uint4 words[2];
        await(words, at.lane < kLanesOfRow ? 3u : 1u,
              [&](int n) { return part + (n == 0 ? group_ * kHeadDim + row * 4 : row * kHeadDim + d) * 4; });
        const float part_max = __uint_as_float(words[0].x), part_sum = __uint_as_float(words[0].y);
        const float4 out = make_float4(__uint_as_float(words[1].x), __uint_as_float(words[1].y),
                                       __uint_as_float(words[1].z), __uint_as_float(words[1].w));
        const float next = fmaxf(max, part_max);
        const float factor = exp2_approx(max - next), weight = exp2_approx(part_max - next);
        max = next;
        sum = sum * factor + weight * part_sum;
        rescale(total, factor);
        add(total, weight, out);
      }
      const int merged = item.parts < kWarps ? item.parts : kWarps;
      if (merged > 1) {
        if (at.warp < merged) {
          if (at.lane < kLanesOfRow) *reinterpret_cast<float4*>(meeting_row(at.warp) + d) = total;
          if (at.lane == 0) stats[at.warp] = make_float2(max, sum);
        }
        sync_consumers();
        if (at.warp == 0) {
          float all_max = -INFINITY;
#pragma unroll 1
          for (int i = 0; i < merged; ++i) all_max = fmaxf(all_max, stats[i].x);
          sum = 0.0f;
          total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
          for (int i = 0; i < merged; ++i) {
            const float weight = exp2_approx(stats[i].x - all_max);
            sum += weight * stats[i].y;
            if (at.lane < kLanesOfRow) add(total, weight, *reinterpret_cast<const float4*>(meeting_row(i) + d));
          }
        }
      }
      if (at.warp == 0 && at.lane < kLanesOfRow) write_out(item.row, head * group_ + row, d, total, sum, set);
      sync_consumers();
    }
  }

  __device__ __forceinline__ float* meeting_row(int row) const {
    return block_.at<float>(block_.args.shared.meeting + row * block_.args.shared.meeting_pitch);
  }
  __device__ __forceinline__ unsigned char* part_at(unsigned char* set, int block, int slot) const {
    return set + block_.args.set.parts + (block * 2 + slot) * block_.args.set.part_bytes;
  }

  __device__ __forceinline__ void write_out(int row, int head, int d, float4 total, float sum,
                                            unsigned char* set) const {
    const float factor = 1.0f / sum;
    store_relaxed_8(set + block_.args.set.attention + (int64_t{row} * q_size_ + head * kHeadDim + d) * 2,
                    {pack<T>(total.x * factor, total.y * factor), pack<T>(total.z * factor, total.w * factor)});
  }

  static __device__ __forceinline__ void add(float4& to, float weight, float4 x) {
    to.x += weight * x.x, to.y += weight * x.y, to.z += weight * x.z, to.w += weight * x.w;
  }
  static __device__ __forceinline__ void rescale(float4& x, float factor) {
    x.x *= factor, x.y *= factor, x.z *= factor, x.w *= factor;
  }
  static __device__ __forceinline__ uint4 words(float4 x) {
    return {__float_as_uint(x.x), __float_as_uint(x.y), __float_as_uint(x.z), __float_as_uint(x.w)};
  }

  const Block& block_;
  RingReader& ring_;
  const Place place_;
  const int group_, q_size_;
};

}  // namespace onepass::layer_stack
