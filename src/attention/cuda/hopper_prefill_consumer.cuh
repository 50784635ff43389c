// A consumer of the Hopper prefill kernel: a warpgroup that owns 64 queries of each tile.
#pragma once

#include <cstddef>

#include "attention/cuda/hopper_prefill_kernel.cuh"
#include "attention/cuda/hopper_prefill_softmax.cuh"

namespace onepass::hopper {

template <typename Config>
class PrefillConsumer {
  using T = typename Config::T;
  static constexpr int kKeys = Config::kKeys;
  using Scores = float[kKeys / 2];
  using Weights = uint32_t[kKeys / 4];
  using Accumulators = float[Config::kHeadDimV / 2];

 public:
  __device__ PrefillConsumer(const PrefillArgs& args, const PrefillMaps& maps, PrefillShared<Config> shared)
      : args_(args),
        maps_(maps),
        shared_(shared),
        warpgroup_(uniform(threadIdx.x / 128 - 1)),
        warp_(uniform(threadIdx.x / 32 % 4)),
        lane_(threadIdx.x % 32),
        softmax_((Config::kSoftcap ? args.softcap : args.softmax_scale) * kLog2E) {}

  // A step is a pair of products, the scores of one block of keys and the values of the block before, and then the
  // exponentials, while the other warpgroup has the tensor cores. The first scores of a tile go with the last values of
  // the tile before.
  __device__ void run() {
    if (warpgroup_ == Config::kConsumers - 1) pass_turn();  // the first warpgroup goes first
    Scores s;
    Weights p;
    Accumulators o;
    if (!next_tile()) return;
    take_turn();
    start_first_scores(s);
    pass_turn();
    wgmma_wait<0>();
    wgmma_touch(s);
    while (true) {
      release_keys();
      if (end_block_ - 1 == first_block_) release_queries();
      cap_and_mask(s, end_block_ - 1);
      softmax_.reset();
      float nothing[2];
      softmax_.raise(s, nothing);
      softmax_.try_exponentials(s, p, true);
      skip_values();

#pragma unroll 1
      for (int n = end_block_ - 2; n >= first_block_; --n) {
        if constexpr (Config::kOverlapValues) {
          // Two steps a round: the probabilities change places and need not be moved.
          Weights next;
          step(s, o, p, next, n);
          if (--n < first_block_) {
#pragma unroll
            for (int i = 0; i < kKeys / 4; ++i) p[i] = next[i];
            break;
          }
          step(s, o, next, p, n);
        } else {
          step(s, o, p, p, n);
        }
      }

      const bool accumulate = end_block_ - first_block_ > 1;
      const int tile_slot = tile_slot_;
      // Before the turn: it takes long, and the tensor cores would wait.
      const bool more = next_tile();
      take_turn();
      start_values(o, p, accumulate);
      softmax_.add_up();  // while the product runs
      // When there are no more, the scores of whatever lies there: it costs little once, and spares a branch, for which
      // ptxas would serialize the products.
      start_first_scores(s, more);
      pass_turn();
      wgmma_wait<1>();
      wgmma_touch(o);
      wgmma_touch(p);
      release_values();
      write(o, tile_slot);
      wgmma_wait<0>();
      wgmma_touch(s);
      if (!more) break;
    }
    if (lane_ == 0) store_wait();
  }

 private:
  // Scores of block n, values of block n + 1 with its probabilities `p`; then probabilities of block n, to `next`.
  // Where they are not the same, the product with V may go on meanwhile.
  __device__ void step(Scores& s, Accumulators& o, Weights& p, Weights& next, int n) {
    take_turn();
    start_scores(s);
    start_values(o, p, n < end_block_ - 2);
    pass_turn();
    wgmma_wait<Config::kOverlapValues ? 1 : 0>();
    wgmma_touch(s);
    release_keys();
    if (n == first_block_) release_queries();
    if constexpr (!Config::kOverlapValues) finish_values(o, p);
    cap_and_mask(s, n);
    // The exponentials stand here once, in a loop: of two places that write `next`, ptxas moves it from one to the
    // other.
    bool raised = false;
    float correction[2] = {1.0f, 1.0f};
#pragma unroll 1
    while (!softmax_.try_exponentials(s, next, raised)) {
      softmax_.raise(s, correction);
      raised = true;
    }
    // O is rescaled behind the wait that all warps come to: wgmma.wait_group is for the whole warpgroup, and must not
    // stand in the loop, where a warp is by itself.
    if constexpr (Config::kOverlapValues) finish_values(o, p);
    rescale(o, correction);
    wgmma_touch(o);
  }
  __device__ void finish_values(Accumulators& o, Weights& p) {
    wgmma_wait<0>();
    wgmma_touch(o);
    wgmma_touch(p);
    release_values();
  }

  // The warpgroups take turns at starting products: while one's run, the other computes its exponentials.
  __device__ void take_turn() const { named_barrier_sync(1 + warpgroup_, 256); }
  __device__ void pass_turn() const { named_barrier_arrive(1 + (warpgroup_ + 1) % Config::kConsumers, 256); }

  __device__ void release_keys() {
    if (lane_ == 0) barrier_arrive(shared_.key_empty(key_.slot()));
    key_.advance();
  }
  // When the last scores of a tile are there: the next tile's queries may come.
  __device__ void release_queries() {
    if (lane_ == 0) barrier_arrive(shared_.query_empty(query_.slot(), warpgroup_));
    query_.advance();
  }
  __device__ void release_values() {
    if (lane_ == 0) barrier_arrive(shared_.value_empty(value_.slot()));
    value_.advance();
  }

  // Waits for the next tile; false when there is none.
  __device__ bool next_tile() {
    barrier_wait(shared_.tile_full(tile_.slot()), tile_.parity());
    tile_slot_ = tile_.slot();
    tile_.advance();
    const PrefillTile tile = shared_.load_tile(tile_slot_);
    if (tile.rows == 0) return false;
    const PrefillTilePart part = shared_.load_part(tile_slot_, warpgroup_);
    first_block_ = tile.first_block;
    end_block_ = part.end_block;
    full_first_ = part.full_first;
    full_end_ = part.full_end;
    // Blocks of which none of the 64 rows sees a key are passed over.
#pragma unroll 1
    for (int n = tile.end_block; n > end_block_; --n) {
      barrier_wait(shared_.key_full(key_.slot()), key_.parity());
      release_keys();
    }
    return true;
  }
  // Their values, and turns: all warpgroups take as many.
  __device__ void skip_values() {
#pragma unroll 1
    for (int n = shared_.load_tile(tile_slot_).end_block; n > end_block_; --n) {
      take_turn();
      pass_turn();
      barrier_wait(shared_.value_full(value_.slot()), value_.parity());
      release_values();
    }
  }

  // Starts the first scores of a tile; `more`: if there is one.
  __device__ void start_first_scores(Scores& s, bool more = true) {
    if (more) barrier_wait(shared_.query_full(query_.slot(), warpgroup_), query_.parity());
    start_scores(s, more);
  }

  // Starts S = Q K^T for the next block of K.
  __device__ void start_scores(Scores& s, bool wait = true) {
    if (wait) barrier_wait(shared_.key_full(key_.slot()), key_.parity());
    const uint64_t q = row_descriptor(shared_.query(query_.slot(), warpgroup_));
    const uint64_t k = row_descriptor(shared_.key(key_.slot()));
    wgmma_touch(s);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Config::kHeadDim / 16; ++i) {
      const int panel = i / 4;
      const int column = i % 4 * 32;  // bytes
      wgmma_scores<T>(s, q + ((panel * 64 * 128 + column) >> 4), k + ((panel * kKeys * 128 + column) >> 4), i > 0);
    }
    wgmma_commit();
  }

  // Starts O += P V (or O = P V) for the next block of V.
  __device__ void start_values(Accumulators& o, Weights& p, bool accumulate) {
    barrier_wait(shared_.value_full(value_.slot()), value_.parity());
    const uint64_t v = column_descriptor(shared_.value(value_.slot()), kKeys * 128);
    wgmma_touch(o);
    wgmma_touch(p);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) wgmma_values<T>(o, p + 4 * i, v + ((i * 16 * 128) >> 4), i > 0 || accumulate);
    wgmma_commit();
  }

  // Of the warpgroup, in the tile. All lanes call it.
  __device__ int first_row() const {
    return Config::kPaired ? uniform(shared_.first_row(warpgroup_)) : 64 * warpgroup_;
  }
  __device__ int thread_row(int half) const { return 16 * warp_ + lane_ / 4 + 8 * half; }

  __device__ bool needs_mask(int n) const { return n < full_first_ || n >= full_end_; }

  // Keys that a row does not see get a score of -infinity. Of a thread's 32 columns (kKeys / 4) of a row, in order,
  // those before some bound are the bits below a place: tests of constant bits are cheaper than comparisons.
  __device__ void mask(Scores& s, int n) const {
    const int column = n * kKeys + lane_ % 4 * 2;
    int ends[2];
    int first_position = 0;
    if (args_.mask.chunk > 0 || n < full_first_) {
      const PrefillTile tile = shared_.load_tile(tile_slot_);
      first_position = tile.position + first_row();
#pragma unroll
      for (int half = 0; half < 2; ++half)
        ends[half] = args_.mask.end(first_position + thread_row(half), tile.seqlen_k);
    } else {
      const uint32_t tile = shared_.tile(tile_slot_);
      const int seqlen_k = load_shared_4(tile + offsetof(PrefillTile, seqlen_k));
      const int seen_end =
          load_shared_4(shared_.part_address(tile_slot_, warpgroup_) + offsetof(PrefillTilePart, seen_end));
#pragma unroll
      for (int half = 0; half < 2; ++half) ends[half] = min(seen_end + thread_row(half), seqlen_k);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int seen = columns_before(ends[half] - column);
#pragma unroll
      for (int word = 0; word < kKeys / 4; word += 32) {
        const uint32_t bits = low_bits(seen - word);
#pragma unroll
        for (int i = word; i < kKeys / 4 && i < word + 32; ++i) {
          if (!(bits >> (i - word) & 1)) s[4 * (i / 2) + 2 * half + i % 2] = -INFINITY;
        }
      }
    }
    if (n >= full_first_) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int unseen = columns_before(args_.mask.first(first_position + thread_row(half)) - column);
#pragma unroll
      for (int word = 0; word < kKeys / 4; word += 32) {
        const uint32_t bits = low_bits(unseen - word);
#pragma unroll
        for (int i = word; i < kKeys / 4 && i < word + 32; ++i) {
          if (bits >> (i - word) & 1) s[4 * (i / 2) + 2 * half + i % 2] = -INFINITY;
        }
      }
    }
  }

  // How many of a thread's columns, 0, 1, 8, 9, 16, 17, ..., are less than `end`?
  __device__ static int columns_before(int end) { return end <= 0 ? 0 : end / 8 * 2 + min(end % 8, 2); }
  __device__ static uint32_t low_bits(int count) {
    return count >= 32 ? 0xFFFFFFFFu : count <= 0 ? 0u : (1u << count) - 1;
  }

  // What is left of the soft cap is the softmax's scale. Scores that share a reciprocal round together: those that a
  // row does not see are the same for all, before and after.
  __device__ void cap_and_mask(Scores& s, int n) const {
    const bool masked = needs_mask(n);
    if constexpr (Config::kSoftcap) {
      if (masked) mask(s, n);
      softmax_.cap(s, args_.cap_scale);
    }
    if (masked) mask(s, n);
  }

  __device__ void rescale(Accumulators& o, const float (&correction)[2]) const {
    if (!__any_sync(0xFFFFFFFF, correction[0] != 1.0f || correction[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < Config::kHeadDimV / 2; ++i) o[i] *= correction[i / 2 % 2];
  }

  // Divides by the denominator and writes a warp's 16 rows. Gives the tile's description back.
  __device__ void write(const Accumulators& o, int tile_slot) {
    const PrefillTile to = shared_.load_tile(tile_slot);
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_.tile_empty(tile_slot));
    if (args_.sinks != nullptr) softmax_.add_sink(args_.sinks[to.head]);
    const int tile_row = first_row();
    const float inverse[2] = {softmax_.inverse_sum(0), softmax_.inverse_sum(1)};
    if (args_.part_out != nullptr) {
      write_part(o, inverse, to, tile_row);
    } else {
      write_staged(o, inverse, to, tile_row);
    }
    if (args_.softmax_lse == nullptr || lane_ % 4 != 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile_row + thread_row(half);
      if (row < to.rows) {
        args_.softmax_lse[static_cast<int64_t>(to.head) * args_.total_q + to.q_row + row] = softmax_.log_sum(half);
      }
    }
  }

  // In float32, straight from registers.
  __device__ void write_part(const Accumulators& o, const float (&inverse)[2], const PrefillTile& to,
                             int tile_row) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row_in_tile = tile_row + thread_row(half);
      if (row_in_tile >= to.rows) continue;
      const int64_t row = static_cast<int64_t>(to.head) * args_.total_q + to.q_row + row_in_tile;
      float* out = args_.part_out + row * Config::kHeadDimV + lane_ % 4 * 2;
#pragma unroll
      for (int i = 0; i < Config::kHeadDimV / 8; ++i) {
        *reinterpret_cast<float2*>(out + 8 * i) =
            make_float2(o[4 * i + 2 * half] * inverse[half], o[4 * i + 2 * half + 1] * inverse[half]);
      }
    }
  }

  // Some panels at a time, by way of the warp's own shared memory.
  __device__ void write_staged(const Accumulators& o, const float (&inverse)[2], const PrefillTile& to,
                               int tile_row) const {
    const int first_row = tile_row + 16 * warp_;  // of the warp, in the tile
    const int rows = to.rows - first_row;
    const uint32_t stage = shared_.output(4 * warpgroup_ + warp_);
#pragma unroll
    for (int first_panel = 0; first_panel < Config::kPanelsV; first_panel += Config::kOutputPanels) {
      // What was there has been read: long ago, if it is of the tile before.
      if (lane_ == 0) store_wait_read();
      __syncwarp();
#pragma unroll
      for (int i = 0; i < Config::kOutputPanels * 4; ++i) {
        const int chunk = i % 4 * 2 + lane_ / 16;  // of 16 bytes
        const float* from = o + 8 * (first_panel * 4 + i);
        store_matrix_x4(
            stage + i / 4 * 2048 + lane_ % 16 * 128 + ((chunk ^ (lane_ % 8)) * 16),
            pack<T>(from[0] * inverse[0], from[1] * inverse[0]), pack<T>(from[2] * inverse[1], from[3] * inverse[1]),
            pack<T>(from[4] * inverse[0], from[5] * inverse[0]), pack<T>(from[6] * inverse[1], from[7] * inverse[1]));
      }
      fence_async_proxy();
      __syncwarp();
      if (rows >= 16) {
        if (lane_ == 0) {
#pragma unroll
          for (int panel = 0; panel < Config::kOutputPanels; ++panel) {
            store_box_3d(stage + panel * 2048, &maps_.out, (first_panel + panel) * 64, to.head, to.q_row + first_row);
          }
          store_commit();
        }
      } else {
        write_rows(stage, rows, first_panel, to.q_row + first_row, to.head);
      }
    }
  }

  // Fewer than 16 rows: those behind belong to the next request.
  __device__ void write_rows(uint32_t stage, int rows, int first_panel, int q_row, int head) const {
    constexpr int kChunks = Config::kOutputPanels * 8;  // of a row
#pragma unroll 1
    for (int i = lane_; i < rows * kChunks; i += 32) {
      const int r = i / kChunks;
      const int c = i % kChunks;
      T* out = static_cast<T*>(args_.out) + (q_row + r) * args_.out_row_stride + head * args_.out_head_stride +
               first_panel * 64 + c * 8;
      *reinterpret_cast<uint4*>(out) = load_shared_16(stage + c / 8 * 2048 + r * 128 + ((c % 8 ^ (r % 8)) * 16));
    }
    fence_async_proxy();
    __syncwarp();
  }

  const PrefillArgs& args_;
  const PrefillMaps& maps_;
  PrefillShared<Config> shared_;
  const int warpgroup_;
  const int warp_;
  const int lane_;
  PrefillSoftmax<T, kKeys> softmax_;

  RingPlace<Config::kTileSlots> tile_;
  RingPlace<Config::kQuerySlots> query_;
  RingPlace<Config::kKeyStages> key_;
  RingPlace<Config::kValueStages> value_;

  // Of the current tile.
  int tile_slot_ = 0;
  int first_block_ = 0;
  int end_block_ = 0;
  int full_first_ = 0;
  int full_end_ = 0;
};

}  // namespace onepass::hopper
