// The products: x into shared memory as it appears in the exchange, times this block's tiles, and their sums out again.
//
// Weights are the A operand of m16n8k16 and x is B. Where a column stands within an instruction is free as long as both
// agree, so a lane's 16 bytes of a row of weights, columns 0 to 7, are A as they are: columns 0, 1, 4 and 5 in the
// place of row g, columns 2, 3, 6 and 7 in that of row g + 8. One product with x's columns 0, 1, 4 and 5 makes rows 0
// to 7 of the result, one with the others rows 8 to 15, and what stands in the other half of each is of no use. x lies
// in shared memory with its columns in that order, so that no register is moved.
#pragma once

#include "kernels/cuda/rms_norm.cuh"
#include "kernels/cuda/silu.cuh"
#include "models/cuda/layer_stack_ring.cuh"

namespace onepass::layer_stack {

// Warps that share a row's norm: a power of two.
__device__ inline int warps_of_row(int rows) {
  return rows == 1 ? kWarps : rows == 2 ? kWarps / 2 : rows <= 4 ? kWarps / 4 : 1;
}
inline constexpr int kNormPieces = 4;  // of 8 columns, of a lane, at most

// Rows to be read, as a block's pieces of all rows lie side by side: `pieces` of them, piece_bytes each, then the next
// block's.
struct PieceRows {
  const unsigned char* base;
  int pieces, piece_bytes;
  int64_t block_stride, row_stride;

  __device__ __forceinline__ const unsigned char* at(int row, int piece) const {
    const int block = static_cast<unsigned>(piece) / static_cast<unsigned>(pieces);
    return base + block * block_stride + row * row_stride + (piece - block * pieces) * piece_bytes;
  }
};

template <typename T>
class Multiplier {
 public:
  __device__ __forceinline__ Multiplier(const Block& block, RingReader& ring)
      : block_(block), ring_(ring), x_(block.shared + block.args.shared.x), x_pitch_(block.args.shared.x_pitch) {}

  // Rows of float32, normalised; the norm's weights are the ring's next slot, those of heads behind them.
  __device__ __forceinline__ void load_normed(const PieceRows& rows) {
    const auto [warp, lane] = Place(place_);
    const StackShape& shape = block_.args.p.shape;
    const int cols = shape.hidden_size;
    const int warps = warps_of_row(block_.rows()), row = warp / warps, part = warp % warps;
    const bool has_row = row < block_.rows();
    const auto column = [&](int n) { return (n * warps * 32 + part * 32 + lane) * 8; };
    uint4 words[2 * kNormPieces];  // two of each piece
    const unsigned char* from[kNormPieces];
    uint32_t wanted = 0;
#pragma unroll
    for (int n = 0; n < kNormPieces; ++n) {
      from[n] = rows.at(row, column(n) / 8);
      if (has_row && column(n) < cols) wanted |= 3u << 2 * n;
    }
    await(words, wanted, [&](int n) { return from[n / 2] + n % 2 * 16; });
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kNormPieces; ++n) {
      if (!has_row || column(n) >= cols) continue;
      float x[8];
      to_floats(words[2 * n], words[2 * n + 1], x);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += x[i] * x[i];
    }
    sum = sum_over_lanes<32>(sum);
    float* const sums = block_.at<float>(block_.args.shared.norm_sums);
    if (lane == 0) sums[warp] = sum;
    const uint32_t norm = ring_.wait();
    sync_consumers();
    sum = 0.0f;
#pragma unroll 1
    for (int i = 0; i < warps; ++i) sum += sums[row * warps + i];
    const float factor = rms_norm_factor(sum, cols, shape.norm_eps);
#pragma unroll
    for (int n = 0; n < kNormPieces; ++n) {
      if (!has_row || column(n) >= cols) continue;
      float x[8], weight[8];
      to_floats(words[2 * n], words[2 * n + 1], x);
      to_floats(load_shared_16(norm + column(n) * 4), load_shared_16(norm + column(n) * 4 + 16), weight);
      uint32_t out[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[i] = pack<T>(x[2 * i] * (factor * weight[2 * i]), x[2 * i + 1] * (factor * weight[2 * i + 1]));
      }
      store_x(x_at(row, column(n) / 8), {out[0], out[1], out[2], out[3]});
    }
    const int i = (warp * 32 + lane) * 4;
    if (i < 2 * shape.head_dim) {
      store_shared_16(block_.shared + block_.args.shared.head_norms + i * 4, load_shared_16(norm + (cols + i) * 4));
    }
    ring_.release();
    sync_consumers();
  }

  // Rows of `cols` elements.
  __device__ __forceinline__ void load(const PieceRows& rows, int cols) {
    const auto [warp, lane] = Place(place_);
    constexpr int kAtOnce = 4;
    const int of_row = cols / 8, pieces = block_.rows() * of_row;
    int row = 0, piece = warp * 32 + lane;
#pragma unroll 1
    for (int first = warp * 32; first < pieces; first += kAtOnce * kConsumers) {
      uint4 words[kAtOnce];
      const unsigned char* from[kAtOnce];
      uint32_t to[kAtOnce], wanted = 0;
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        for (; piece >= of_row; piece -= of_row) ++row;
        from[n] = rows.at(row, piece);
        to[n] = x_at(row, piece);
        if (row < block_.rows()) wanted |= 1u << n;
        piece += kConsumers;
      }
      await(words, wanted, [&](int n) { return from[n]; });
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        if (wanted >> n & 1) store_x(to[n], words[n]);
      }
    }
    sync_consumers();
  }

  // x times this block's tiles, the sums of all warps to shared memory.
  __device__ __forceinline__ void multiply(int number) {
    const auto [warp, lane] = Place(place_);
    const Product& product = block_.product(number);
    const int rows = block_.rows(), group = lane / 4, member = lane % 4;
    turn_ ^= 1;
    float* sums = sums_of(warp) + member * 2 * kTileRows + group;
    // Of each unit this warp has one or two chunks, or none. A lane without a row of x takes the last one's: what it
    // computes is nobody's.
    const UnitShare of_unit(product.unit_chunks, warp), of_last(product.last_chunks, warp);
    const uint32_t x_begin = x_ + (group < rows ? group : rows - 1) * x_pitch_ + member * 16;
    const uint32_t x_step = product.unit_chunks * kChunk * 2;
    const int units = product.units;
    uint32_t x_at = x_begin;
    int unit = 0;  // of its tile
    float even[2][4] = {}, odd[2][4] = {};
#pragma unroll 1
    for (int left = block_.tiles_of(number) * units; left > 0; --left) {
      const bool is_last = unit + 1 == units;
      const UnitShare part = is_last ? of_last : of_unit;
      const uint32_t w_at = ring_.wait() + group * part.pitch + part.begin + member * 16;
      multiply_chunk(w_at, x_at + part.begin, even, odd, part.count > 0);
      multiply_chunk(w_at + kChunk * 2, x_at + part.begin + kChunk * 2, even, odd, part.count > 1);
      ring_.release();
      ++unit;
      x_at += x_step;
      if (!is_last) continue;
      unit = 0;
      x_at = x_begin;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (member * 2 + n < rows) sums[n * kTileRows] = (even[0][n] + even[1][n]) + (odd[0][2 + n] + odd[1][2 + n]);
      }
      sums += kTileRows * rows;
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int n = 0; n < 4; ++n) even[j][n] = odd[j][n] = 0.0f;
    }
    sync_consumers();
  }

  // write(index, row, tile, column of the tile, sum) for what this block has computed, neighbouring columns by
  // neighbouring lanes; tiles count from the block's first, `index` numbers all. All threads of a warp come along:
  // `exists` tells whether there is something.
  template <typename Write>
  __device__ __forceinline__ void finish(int number, const float* bias, const Write& write) const {
    const auto [warp, lane] = Place(place_);
    const int rows = block_.rows(), tiles = block_.tiles_of(number), column = lane % kTileRows;
#pragma unroll 1
    for (int tile = warp; tile < tiles; tile += kWarps) {
#pragma unroll 1
      for (int first = 0; first < rows; first += 32 / kTileRows) {
        const int row = first + lane / kTileRows, index = (tile * rows + first) * kTileRows + lane;
        const bool exists = row < rows;
        float sum = 0.0f;
        if (exists) {
          if (bias != nullptr) sum = __ldg(bias + first_tile(number, tile) * kTileRows + column);
#pragma unroll
          for (int other = 0; other < kWarps; ++other) sum += sums_of(other)[index];
        }
        write(index, row, tile, column, sum, exists);
      }
    }
  }
  // The same, gated: write(row, tile, column of the tile, gate, up).
  template <typename Write>
  __device__ __forceinline__ void finish_gated(int number, const float* bias, const Write& write) const {
    const auto [warp, lane] = Place(place_);
    constexpr int kGates = kTileRows / 2;
    const int rows = block_.rows(), tiles = block_.tiles_of(number), row = lane / kGates, column = lane % kGates;
#pragma unroll 1
    for (int tile = warp; tile < tiles; tile += kWarps) {
      const bool exists = row < rows;
      float gate = 0.0f, up = 0.0f;
      if (exists) {
        if (bias != nullptr) {
          const float* const of_gate = bias + first_tile(number, tile) * kGates + column;
          gate = __ldg(of_gate), up = __ldg(of_gate + block_.product(number).rows / 2);
        }
        const int at = (tile * rows + row) * kTileRows + column;
#pragma unroll
        for (int other = 0; other < kWarps; ++other) {
          gate += sums_of(other)[at];
          up += sums_of(other)[at + kGates];
        }
      }
      write(row, tile, column, gate, up, exists);
    }
  }

 private:
  static __device__ __forceinline__ void to_floats(uint4 low, uint4 high, float (&x)[8]) {
    x[0] = __uint_as_float(low.x), x[1] = __uint_as_float(low.y), x[2] = __uint_as_float(low.z),
    x[3] = __uint_as_float(low.w);
    x[4] = __uint_as_float(high.x), x[5] = __uint_as_float(high.y), x[6] = __uint_as_float(high.z),
    x[7] = __uint_as_float(high.w);
  }

  // A warp's chunks of a unit, in bytes from its rows' beginning.
  struct UnitShare {
    uint32_t begin, pitch;
    int count;

    __device__ __forceinline__ UnitShare(int chunks, int warp)
        : begin(warp * chunks / kWarps * kChunk * 2),
          pitch(chunks * kChunk * 2 + kPadding),
          count((warp + 1) * chunks / kWarps - warp * chunks / kWarps) {}
  };
  static_assert(kUnitChunks <= 2 * kWarps);

  static __device__ __forceinline__ void multiply_chunk(uint32_t w_at, uint32_t x_at, float (&even)[2][4],
                                                        float (&odd)[2][4], bool exists) {
    if (!exists) return;
    uint4 w[2], x[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      w[j] = load_shared_16(w_at + j * 64);
      x[j] = load_shared_16(x_at + j * 64);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      mma_m16n8k16<T>(even[j], {w[j].x, w[j].y, w[j].z, w[j].w}, x[j].x, x[j].y);
      mma_m16n8k16<T>(odd[j], {w[j].x, w[j].y, w[j].z, w[j].w}, x[j].z, x[j].w);
    }
  }

  // Piece of 8 columns of a row of x.
  __device__ __forceinline__ uint32_t x_at(int row, int piece) const { return x_ + row * x_pitch_ + piece * 16; }
  static __device__ __forceinline__ void store_x(uint32_t at, uint4 x) { store_shared_16(at, {x.x, x.z, x.y, x.w}); }

  __device__ __forceinline__ int first_tile(int number, int tile) const {
    return block_.index() * block_.product(number).of_block + tile;
  }

  // In turns, so that a warp may be a product ahead of one that still sums.
  __device__ __forceinline__ float* sums_of(int warp) const {
    return block_.at<float>(block_.args.shared.sums + (turn_ * kWarps + warp) * block_.args.shared.sums_of_warp);
  }

  const Block& block_;
  RingReader& ring_;
  const Place place_;
  const uint32_t x_;
  const int x_pitch_;
  int turn_ = 0;
};

// Two neighbouring elements, which the even lane of a pair writes at once: all of what write() is given.
template <typename T, typename Write>
__device__ __forceinline__ void write_pair(float value, bool exists, const Write& write) {
  const float other = __shfl_down_sync(0xffffffffu, value, 1);
  if (exists && threadIdx.x % 2 == 0) write(pack<T>(value, other));
}

}  // namespace onepass::layer_stack
