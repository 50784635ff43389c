// Tiles of matrix products, for the instruction set that the including file names by ONEPASS_ISA and the compiler's
// flags.
//
// A register tile is kTileRows rows of activations by four outputs: with AVX-512, 24 of the 32 registers accumulate,
// and ten loads feed 24 multiplications, so that arithmetic and not the L1 cache sets the pace.
#include "base/simd.inl"
#include "kernels/cpu/isa_kernels.h"

namespace onepass::cpu::ONEPASS_ISA {
namespace {

using namespace onepass::ONEPASS_ISA;  // NOLINT: the vectors of this instruction set

constexpr int kTileOutputs = 4;
// kStreamRows: up to so many rows, weights are read once in the order of memory; beyond, tile by tile.
#if defined(__AVX512F__)
constexpr int kTileRows = 6, kStreamRows = 4;
#elif defined(__AVX2__)
constexpr int kTileRows = 3, kStreamRows = 3;
#else
constexpr int kTileRows = 2, kStreamRows = 2;
#endif

// How a vector of weights meets a vector of activations, for each dtype of weights. kStep: columns of one vector.
struct F32 {
  using W = float;
  using X = float;
  using WVec = Vec;
  using XVec = Vec;
  static constexpr int kStep = Vec::kLanes;
  static WVec load_w(const W* p) { return vec_load(p); }
  static XVec load_x(const X* p) { return vec_load(p); }
  static Vec multiply_add(WVec w, XVec x, Vec sum) { return vec_fma(w, x, sum); }
};

struct F16 : F32 {
  using W = uint16_t;
  static WVec load_w(const W* p) { return vec_load_f16(p); }
};

#if defined(__AVX512BF16__)
struct BF16 {
  using W = uint16_t;
  using X = uint16_t;
  using WVec = __m512i;
  using XVec = __m512i;
  static constexpr int kStep = 32;
  static WVec load_w(const W* p) { return _mm512_loadu_si512(p); }
  static XVec load_x(const X* p) { return _mm512_loadu_si512(p); }
  static Vec multiply_add(WVec w, XVec x, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x))};
  }
};
#else
struct BF16 : F32 {
  using W = uint16_t;
  static WVec load_w(const W* p) { return vec_load_bf16(p); }
};
#endif

// One vector of columns.
template <typename Format, int kRows, int kOutputs>
__attribute__((always_inline)) inline void multiply_add(const typename Format::W* const (&w)[kOutputs], int64_t w_col,
                                                        const typename Format::X* const (&x)[kRows], int64_t x_col,
                                                        Vec (&acc)[kRows][kOutputs]) {
  typename Format::WVec weights[kOutputs];
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) weights[o] = Format::load_w(w[o] + w_col);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const typename Format::XVec activations = Format::load_x(x[r] + x_col);
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) acc[r][o] = Format::multiply_add(weights[o], activations, acc[r][o]);
  }
}

// The last columns of a block, filled up with zeros: what follows a row in memory may be anything. (Copied as bytes:
// weights lie at any alignment.)
template <typename Format, int kRows, int kOutputs>
__attribute__((noinline)) void multiply_add_tail(const typename Format::W* const (&w)[kOutputs], int64_t col,
                                                 int64_t cols, const typename Format::X* const (&x)[kRows],
                                                 Vec (&acc)[kRows][kOutputs]) {
  using W = typename Format::W;
  W tails[kOutputs][Format::kStep] = {};
  const W* tail[kOutputs];
  for (int o = 0; o < kOutputs; ++o) {
    __builtin_memcpy(tails[o], w[o] + col, static_cast<size_t>(cols - col) * sizeof(W));
    tail[o] = tails[o];
  }
  multiply_add<Format, kRows, kOutputs>(tail, 0, x, col, acc);
}

// Asks for the next block of weights into the L2 cache, line by line in the order of memory, while this one is worked
// on. Without it a step of a few rows waits for the memory first and computes then: the weights of a 0.5B model with 16
// rows took 45 ms, now 28.5 ms, where reading them alone takes 20 ms and computing alone 21 ms (Zen 5, two cores); 6
// rows 31 ms and 23.5 ms, 64 rows 99 ms and 84 ms.
struct Ahead {
  const char* at = nullptr;
  int64_t lines_left = 0;  // of this row
  int64_t rows_left = 0;   // this one included
  int64_t lines_of_row = 0;
  int64_t skip = 0;  // from the end of a row's last line to the next row
  int64_t lines_each_step = 0;

  // Spread over `steps` steps.
  Ahead(const LinearTileArgs& args, int64_t steps) {
    if (args.next_rows == 0 || steps == 0) return;
    at = static_cast<const char*>(args.next_w);
    lines_of_row = (args.next_row_bytes + 63) / 64;
    lines_left = lines_of_row;
    rows_left = args.next_rows;
    skip = args.next_row_stride - lines_of_row * 64;
    lines_each_step = (lines_of_row * rows_left + steps - 1) / steps;
  }
  __attribute__((always_inline)) void step() {
    if (rows_left == 0) return;
    for (int64_t i = 0; i < lines_each_step; ++i) {
      __builtin_prefetch(at, 0, /*locality=*/2);
      at += 64;
      if (--lines_left > 0) continue;
      at += skip;
      lines_left = lines_of_row;
      if (--rows_left == 0) return;
    }
  }
};

// kRows rows by kTileOutputs outputs; rows of weights past `outputs` are read from the last one and their sums dropped.
template <typename Format, int kRows>
inline void tile_of_rows(const LinearTileArgs& args, int64_t row, int64_t output, Ahead& ahead) {
  using W = typename Format::W;
  using X = typename Format::X;
  const int outputs = static_cast<int>(args.outputs - output < kTileOutputs ? args.outputs - output : kTileOutputs);
  const W* w[kTileOutputs];
  const X* x[kRows];
  Vec acc[kRows][kTileOutputs];
  for (int o = 0; o < kTileOutputs; ++o) {
    w[o] = static_cast<const W*>(args.w) + (output + (o < outputs ? o : outputs - 1)) * args.w_row_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    x[r] = static_cast<const X*>(args.x) + (row + r) * args.x_row_stride;
#pragma GCC unroll 8
    for (int o = 0; o < kTileOutputs; ++o) acc[r][o] = vec_zero();
  }
  int64_t col = 0;
  for (; col + Format::kStep <= args.cols; col += Format::kStep) {
    ahead.step();
    multiply_add<Format, kRows, kTileOutputs>(w, col, x, col, acc);
  }
  if (col < args.cols) multiply_add_tail<Format, kRows, kTileOutputs>(w, col, args.cols, x, acc);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    alignas(16) float block_sums[4];
    _mm_store_ps(block_sums, vec_sums(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
    float* const sums = args.sums + (row + r) * args.sums_stride + output;
    for (int o = 0; o < outputs; ++o) sums[o] = args.first ? block_sums[o] : sums[o] + block_sums[o];
  }
}

// kRows rows of activations with every row of weights, in the order of memory and asking for what lies kAhead bytes
// further on: 98% of what a plain read of the memory reaches (Zen 5), where four rows of weights side by side reach
// 89%. Narrow vectors need several sums at the same time all the same, or each addition waits for the one before it.
template <typename Format, int kRows>
void stream_of_rows(const LinearTileArgs& args) {
  using W = typename Format::W;
  constexpr int kOutputs = Vec::kLanes >= 16 ? 1 : Vec::kLanes >= 8 ? 2 : 4;
  constexpr int64_t kAhead = 4096;
  constexpr int kStepBytes = kOutputs * Format::kStep * static_cast<int>(sizeof(W));
  const typename Format::X* x[kRows];
  for (int r = 0; r < kRows; ++r) x[r] = static_cast<const typename Format::X*>(args.x) + r * args.x_row_stride;
  for (int64_t output = 0; output < args.outputs; output += kOutputs) {
    const W* w[kOutputs];
    for (int o = 0; o < kOutputs; ++o) {
      const int64_t row = output + o < args.outputs ? output + o : args.outputs - 1;
      w[o] = static_cast<const W*>(args.w) + row * args.w_row_stride;
    }
    const char* ahead = reinterpret_cast<const char*>(w[0]) + kAhead;
    float sums[kRows][kOutputs];
    for (int64_t begin = 0; begin < args.cols; begin += args.block_cols) {
      const int64_t end = args.cols - begin < args.block_cols ? args.cols : begin + args.block_cols;
      Vec acc[kRows][kOutputs];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int o = 0; o < kOutputs; ++o) acc[r][o] = vec_zero();
      }
      int64_t col = begin;
      for (; col + Format::kStep <= end; col += Format::kStep, ahead += kStepBytes) {
#pragma GCC unroll 4
        for (int byte = 0; byte < kStepBytes; byte += 64) __builtin_prefetch(ahead + byte);
        multiply_add<Format, kRows, kOutputs>(w, col, x, col, acc);
      }
      if (col < end) multiply_add_tail<Format, kRows, kOutputs>(w, col, end, x, acc);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int o = 0; o < kOutputs; ++o) {
          const float block_sum = _mm_cvtss_f32(vec_sums(acc[r][o], acc[r][o], acc[r][o], acc[r][o]));
          sums[r][o] = begin == 0 ? block_sum : sums[r][o] + block_sum;
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int o = 0; o < kOutputs && output + o < args.outputs; ++o)
        args.sums[r * args.sums_stride + output + o] = sums[r][o];
    }
  }
}

template <typename Format, int kRows>
void tiles_of_rows(const LinearTileArgs& args, int64_t row, Ahead& ahead) {
  for (int64_t output = 0; output < args.outputs; output += kTileOutputs)
    tile_of_rows<Format, kRows>(args, row, output, ahead);
}

template <typename Format>
void tile(const LinearTileArgs& args) {
  const int64_t groups = (args.rows + kTileRows - 1) / kTileRows;
  Ahead ahead(args, groups * ((args.outputs + kTileOutputs - 1) / kTileOutputs) * (args.cols / Format::kStep));
  int64_t row = 0;
  for (; row + kTileRows <= args.rows; row += kTileRows) tiles_of_rows<Format, kTileRows>(args, row, ahead);
  switch (args.rows - row) {
#if defined(__AVX512F__)
    case 5:
      return tiles_of_rows<Format, 5>(args, row, ahead);
    case 4:
      return tiles_of_rows<Format, 4>(args, row, ahead);
    case 3:
      return tiles_of_rows<Format, 3>(args, row, ahead);
#endif
#if defined(__AVX2__)
    case 2:
      return tiles_of_rows<Format, 2>(args, row, ahead);
#endif
    case 1:
      return tiles_of_rows<Format, 1>(args, row, ahead);
    default:
      return;
  }
}

template <typename Format>
void stream(const LinearTileArgs& args) {
  switch (args.rows) {
#if defined(__AVX512F__)
    case 4:
      return stream_of_rows<Format, 4>(args);
#endif
#if defined(__AVX2__)
    case 3:
      return stream_of_rows<Format, 3>(args);
#endif
    case 2:
      return stream_of_rows<Format, 2>(args);
    default:
      return stream_of_rows<Format, 1>(args);
  }
}

}  // namespace

extern const LinearKernels kLinearKernels;
const LinearKernels kLinearKernels = {
    .f32 = {.tile = tile<F32>, .stream = stream<F32>},
    .f16 = {.tile = tile<F16>, .stream = stream<F16>},
    .bf16 = {.tile = tile<BF16>, .stream = stream<BF16>},
#if defined(__AVX512BF16__)
    .bf16_rounds_x = true,
#else
    .bf16_rounds_x = false,
#endif
    .max_rows = kStreamRows,
};

}  // namespace onepass::cpu::ONEPASS_ISA
