// A consumer of the Hopper prefill kernel: a warpgroup that owns 64 queries of each tile.
#pragma once

#include "attention/cuda/hopper_prefill_kernel.cuh"

namespace onepass::hopper {

// O is rescaled only when a row's maximum grew by more than a factor of 2^8: until then its weights are at most 256
// times what they need be, which neither float32 nor the probabilities' own format minds, and the denominator is scaled
// alike.
constexpr float kRescaleThreshold = 8.0f;

template <typename T>
__device__ inline uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
  } else {
    const __half2 v = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
}

template <typename Config>
class PrefillConsumer {
  using T = typename Config::T;
  static constexpr int kKeys = Config::kKeys;

 public:
  __device__ PrefillConsumer(const PrefillArgs& args, const PrefillMaps& maps, PrefillShared<Config> shared)
      : args_(args),
        maps_(maps),
        shared_(shared),
        warpgroup_(uniform(threadIdx.x / 128 - 1)),
        warp_(uniform(threadIdx.x / 32 % 4)),
        lane_(threadIdx.x % 32),
        scale_(args.softmax_scale * 1.4426950408889634f) {}

  __device__ void run() {
    if (warpgroup_ == 1) pass_turn();  // the other warpgroup goes first
    float s[kKeys / 2];
    float o[Config::kHeadDimV / 2];
    uint32_t p[kKeys / 4];

    if (!next_tile()) return;
    take_turn();
    start_scores(s);
    pass_turn();
    while (true) {
      wgmma_wait<0>();
      wgmma_touch(s);
      release(shared_.key_empty(key_.slot));
      key_.advance();
      if (needs_mask(end_block_ - 1)) mask(s, end_block_ - 1);
      max_[0] = max_[1] = -INFINITY;
      sum_[0] = sum_[1] = 0.0f;
      float correction[2];
      softmax(s, correction);
      to_operand(s, p);
      release_output();

      for (int n = end_block_ - 2; n >= first_block_; --n) {
        take_turn();
        start_scores(s);
        start_values(o, p, n < end_block_ - 2);
        pass_turn();
        wgmma_wait<1>();
        wgmma_touch(s);
        release(shared_.key_empty(key_.slot));
        key_.advance();
        if (needs_mask(n)) mask(s, n);
        softmax(s, correction);
        // The product with V has all that time to finish. ptxas would rather wait for it before the exponentials,
        // unless the wait lies behind a branch that depends on them (no sum is negative).
        const bool grew = correction[0] != 1.0f || correction[1] != 1.0f;
        if (__any_sync(0xFFFFFFFF, grew || sum_[0] < 0.0f || sum_[1] < 0.0f)) {
          wgmma_wait_all();
          wgmma_touch(o);
          rescale(o, correction);
        } else {
          wgmma_wait<0>();
          wgmma_touch(o);
        }
        wgmma_touch(p);
        release(shared_.value_empty(value_.slot));
        value_.advance();
        to_operand(s, p);
      }

      // The last product with V, and the next tile's first scores behind it.
      const bool accumulate = end_block_ - first_block_ > 1;
      if constexpr (Config::kQuerySlots > 1) {
        const Output output = this->output();
        const bool more = next_tile();
        take_turn();
        start_values(o, p, accumulate);
        // When there are no more, the scores of whatever lies there: it costs little once, and spares a branch.
        start_scores(s, more);
        pass_turn();
        wgmma_wait<1>();
        wgmma_touch(o);
        wgmma_touch(p);
        release(shared_.value_empty(value_.slot));
        value_.advance();
        write(o, output);
        if (!more) break;
      } else {
        take_turn();
        start_values(o, p, accumulate);
        pass_turn();
        wgmma_wait<0>();
        wgmma_touch(o);
        wgmma_touch(p);
        release(shared_.value_empty(value_.slot));
        value_.advance();
        write(o, output());
        release_output();
        if (!next_tile()) break;
        take_turn();
        start_scores(s);
        pass_turn();
      }
    }
    wgmma_wait<0>();
    if (lane_ == 0) store_wait();
  }

 private:
  // Where a tile's results go.
  struct Output {
    int q_row;
    int rows;  // of the tile
    int head;
    int slot;
  };

  __device__ Output output() const { return {q_row_, rows_, head_, query_slot_}; }

  // The warpgroups take turns at starting products: while one's run, the other computes its exponentials.
  __device__ void take_turn() const {
    if constexpr (Config::kTurns) named_barrier_sync(1 + warpgroup_, 256);
  }
  __device__ void pass_turn() const {
    if constexpr (Config::kTurns) named_barrier_arrive(2 - warpgroup_, 256);
  }

  __device__ void release(uint32_t empty) const {
    if (lane_ == 0) barrier_arrive(empty);
  }

  __device__ static int uniform(int x) { return __shfl_sync(0xFFFFFFFF, x, 0); }

  // Waits for the next tile and its queries; false when there is none.
  __device__ bool next_tile() {
    barrier_wait(shared_.query_full(query_.slot), query_.parity);
    const uint4 a = load_shared_16(shared_.tile(query_.slot));
    const uint4 b = load_shared_16(shared_.tile(query_.slot) + 16);
    query_slot_ = query_.slot;
    // The compiler must know that these are the warp's: then the loops, and with them the descriptors, are too.
    q_row_ = uniform(a.x);
    rows_ = uniform(a.y);
    head_ = uniform(b.x);
    first_block_ = uniform(b.y);
    end_block_ = uniform(b.z);
    seqlen_k_ = uniform(a.w);
    position_ = uniform(a.z) + 64 * warpgroup_;
    // Blocks that all 64 rows see whole: full_first_ <= n < full_end_.
    full_first_ = (args_.mask.first(position_ + 63) + kKeys - 1) / kKeys;
    full_end_ = args_.mask.end(position_, seqlen_k_) / kKeys;
    query_.advance();
    return rows_ > 0;
  }

  // Starts S = Q K^T for the next block of K.
  __device__ void start_scores(float (&s)[kKeys / 2], bool wait = true) {
    if (wait) barrier_wait(shared_.key_full(key_.slot), key_.parity);
    const uint64_t q = row_descriptor(shared_.query(query_slot_) + warpgroup_ * 64 * 128);
    const uint64_t k = row_descriptor(shared_.key(key_.slot));
    wgmma_touch(s);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Config::kHeadDim / 16; ++i) {
      const int panel = i / 4;
      const int column = i % 4 * 32;  // bytes
      wgmma_scores<T>(s, q + ((panel * Config::kRows * 128 + column) >> 4), k + ((panel * kKeys * 128 + column) >> 4),
                      i > 0);
    }
    wgmma_commit();
  }

  // Starts O += P V (or O = P V) for the next block of V.
  __device__ void start_values(float (&o)[Config::kHeadDimV / 2], uint32_t (&p)[kKeys / 4], bool accumulate) {
    barrier_wait(shared_.value_full(value_.slot), value_.parity);
    const uint64_t v = column_descriptor(shared_.value(value_.slot), kKeys * 128);
    wgmma_touch(o);
    wgmma_touch(p);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) wgmma_values<T>(o, p + 4 * i, v + ((i * 16 * 128) >> 4), i > 0 || accumulate);
    wgmma_commit();
  }

  // A thread holds of each 8 columns j: s[4j], s[4j + 1] of row lane / 4 and s[4j + 2], s[4j + 3] of the row 8 below,
  // columns 2 * (lane % 4) and the next.
  __device__ int thread_row(int half) const { return 16 * warp_ + lane_ / 4 + 8 * half; }

  __device__ bool needs_mask(int n) const { return n < full_first_ || n >= full_end_; }

  __device__ void mask(float (&s)[kKeys / 2], int n) const {
    const int column = n * kKeys + lane_ % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int position = position_ + thread_row(half);
      const int end = args_.mask.end(position, seqlen_k_) - column;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (8 * j + e >= end) s[4 * j + 2 * half + e] = -INFINITY;
        }
      }
    }
    if (n >= full_first_) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = args_.mask.first(position_ + thread_row(half)) - column;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (8 * j + e < first) s[4 * j + 2 * half + e] = -INFINITY;
        }
      }
    }
  }

  // Scores become exp(score - maximum); max_ and sum_ (this thread's part) are brought up to date, and what went before
  // must be multiplied by `correction`.
  __device__ void softmax(float (&s)[kKeys / 2], float (&correction)[2]) {
    float subtract[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float m[2] = {s[2 * half], s[2 * half + 1]};
#pragma unroll
      for (int j = 1; j < kKeys / 8; ++j) {
        m[0] = fmaxf(m[0], s[4 * j + 2 * half]);
        m[1] = fmaxf(m[1], s[4 * j + 2 * half + 1]);
      }
      float now = fmaxf(m[0], m[1]);
      now = fmaxf(now, __shfl_xor_sync(0xFFFFFFFF, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xFFFFFFFF, now, 2));
      now = fmaxf(now, max_[half]);
      if ((now - max_[half]) * scale_ <= kRescaleThreshold) now = max_[half];
      subtract[half] = now == -INFINITY ? 0.0f : now * scale_;  // no key seen so far: every weight is 0
      correction[half] = exp2_approx(max_[half] * scale_ - subtract[half]);
      max_[half] = now;
    }
    // Additions lag behind: none waits for its exponential.
    constexpr int kLag = 3;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < kKeys / 8 + kLag; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (j < kKeys / 8) s[4 * j + e] = exp2_approx(fmaf(s[4 * j + e], scale_, -subtract[e / 2]));
        if (j >= kLag) sum[e] += s[4 * (j - kLag) + e];
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum_[half] = fmaf(sum_[half], correction[half], sum[2 * half] + sum[2 * half + 1]);
    }
  }

  __device__ void rescale(float (&o)[Config::kHeadDimV / 2], const float (&correction)[2]) const {
#pragma unroll
    for (int j = 0; j < Config::kHeadDimV / 8; ++j) {
      o[4 * j] *= correction[0];
      o[4 * j + 1] *= correction[0];
      o[4 * j + 2] *= correction[1];
      o[4 * j + 3] *= correction[1];
    }
  }

  // Accumulators of 16 columns lie as the operand of 16 rows of V must.
  __device__ static void to_operand(const float (&s)[kKeys / 2], uint32_t (&p)[kKeys / 4]) {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) p[i] = pack<T>(s[2 * i], s[2 * i + 1]);
  }

  // Divides by the denominator and writes a warp's 16 rows, by way of the shared memory where the queries were.
  __device__ void write(const float (&o)[Config::kHeadDimV / 2], const Output& to) {
    float inverse[2];
    float sums[2];
    const int first_row = 64 * warpgroup_ + 16 * warp_;  // of the warp, in the tile
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sum_[half];
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 2);
      if (args_.sinks != nullptr && sum > 0.0f) {
        sum += exp2_approx(args_.sinks[to.head] * 1.4426950408889634f - max_[half] * scale_);
      }
      inverse[half] = sum > 0.0f ? 1.0f / sum : 0.0f;
      sums[half] = sum;
    }
    if constexpr (Config::kQuerySlots == 1 || !Config::kTurns)
      named_barrier_sync(3 + warpgroup_, 128);  // all have done with the queries
    const uint32_t stage = shared_.query(to.slot) + first_row * 128;
    const int row = lane_ % 16;
#pragma unroll
    for (int i = 0; i < Config::kHeadDimV / 16; ++i) {
      const int chunk = i % 4 * 2 + lane_ / 16;  // of 16 bytes
      store_matrix_x4(stage + i / 4 * Config::kRows * 128 + row * 128 + ((chunk ^ (row % 8)) * 16),
                      pack<T>(o[8 * i] * inverse[0], o[8 * i + 1] * inverse[0]),
                      pack<T>(o[8 * i + 2] * inverse[1], o[8 * i + 3] * inverse[1]),
                      pack<T>(o[8 * i + 4] * inverse[0], o[8 * i + 5] * inverse[0]),
                      pack<T>(o[8 * i + 6] * inverse[1], o[8 * i + 7] * inverse[1]));
    }
    const int rows = to.rows - first_row;
    fence_async_proxy();
    __syncwarp();
    if (rows >= 16) {
      if (lane_ == 0) {
#pragma unroll
        for (int panel = 0; panel < Config::kPanelsV; ++panel) {
          store_box_3d(stage + panel * Config::kRows * 128, &maps_.out, panel * 64, to.head, to.q_row + first_row);
        }
        store_commit();
      }
    } else {
      // The rows behind belong to the next request.
      for (int i = lane_; i < rows * (Config::kHeadDimV / 8); i += 32) {
        const int r = i / (Config::kHeadDimV / 8);
        const int c = i % (Config::kHeadDimV / 8);
        T* out = static_cast<T*>(args_.out) + (to.q_row + first_row + r) * args_.out_row_stride +
                 to.head * args_.out_head_stride + c * 8;
        *reinterpret_cast<uint4*>(out) =
            load_shared_16(stage + c / 8 * Config::kRows * 128 + r * 128 + ((c % 8 ^ (r % 8)) * 16));
      }
      fence_async_proxy();
      __syncwarp();
    }
    written_slot_ = to.slot;
    // After the fence, which would wait for these stores.
    if (args_.softmax_lse == nullptr || lane_ % 4 != 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int tile_row = first_row + lane_ / 4 + 8 * half;
      if (tile_row < to.rows) {
        args_.softmax_lse[static_cast<int64_t>(to.head) * args_.total_q + to.q_row + tile_row] =
            sums[half] > 0.0f ? max_[half] * args_.softmax_scale + logf(sums[half]) : -INFINITY;
      }
    }
  }

  // Gives the slot where the last output was staged back to the producer. Put off until the copy is sure to be over.
  __device__ void release_output() {
    if (written_slot_ < 0) return;
    if (lane_ == 0) {
      store_wait_read();
      barrier_arrive(shared_.query_empty(written_slot_));
    }
    written_slot_ = -1;
  }

  const PrefillArgs& args_;
  const PrefillMaps& maps_;
  PrefillShared<Config> shared_;
  const int warpgroup_;
  const int warp_;
  const int lane_;
  const float scale_;  // of scores, to powers of two

  RingPlace<Config::kQuerySlots> query_;
  RingPlace<Config::kStages> key_;
  RingPlace<Config::kStages> value_;

  // Of the current tile.
  int query_slot_ = 0;
  int q_row_ = 0;
  int rows_ = 0;
  int head_ = 0;
  int position_ = 0;  // of this warpgroup's first row
  int seqlen_k_ = 0;
  int first_block_ = 0;
  int end_block_ = 0;
  int full_first_ = 0;
  int full_end_ = 0;
  float max_[2];
  float sum_[2];
  int written_slot_ = -1;
};

}  // namespace onepass::hopper
