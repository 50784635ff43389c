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
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
#elif defined(__AVX2__)
constexpr int kTileRows = 3;
#else
constexpr int kTileRows = 2;
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
template <typename Format, int kRows>
__attribute__((always_inline)) inline void multiply_add(const typename Format::W* const (&w)[kTileOutputs],
                                                        int64_t w_col, const typename Format::X* const (&x)[kRows],
                                                        int64_t x_col, Vec (&acc)[kRows][kTileOutputs]) {
  typename Format::WVec weights[kTileOutputs];
#pragma GCC unroll 8
  for (int o = 0; o < kTileOutputs; ++o) weights[o] = Format::load_w(w[o] + w_col);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const typename Format::XVec activations = Format::load_x(x[r] + x_col);
#pragma GCC unroll 8
    for (int o = 0; o < kTileOutputs; ++o) acc[r][o] = Format::multiply_add(weights[o], activations, acc[r][o]);
  }
}

// kRows rows by kTileOutputs outputs; rows of weights past `outputs` are read from the last one and their sums dropped.
template <typename Format, int kRows, bool kPrefetch>
inline void tile(const LinearTileArgs& args, int64_t row, int64_t output) {
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
  // Memory gives its best when it is asked for in its own order, though the rows are read side by side: the hardware's
  // prefetcher follows such a stream (23 GB/s with requests beside each row's reads, 29 GB/s so).
  const char* ahead = static_cast<const char*>(args.ahead);
  int64_t col = 0;
  for (; col + Format::kStep <= args.cols; col += Format::kStep) {
    if constexpr (kPrefetch) {
      constexpr int kBytes = Format::kStep * kTileOutputs * static_cast<int>(sizeof(W));
#pragma GCC unroll 4
      for (int byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(ahead + byte, 0, 2);
      ahead += kBytes;
    }
    multiply_add<Format, kRows>(w, col, x, col, acc);
  }
  if (col < args.cols) {
    // The last columns, filled up with zeros: what follows a row in memory may be anything. (Copied as bytes: weights
    // lie at any alignment.)
    W tails[kTileOutputs][Format::kStep] = {};
    const W* tail[kTileOutputs];
    for (int o = 0; o < kTileOutputs; ++o) {
      __builtin_memcpy(tails[o], w[o] + col, static_cast<size_t>(args.cols - col) * sizeof(W));
      tail[o] = tails[o];
    }
    multiply_add<Format, kRows>(tail, 0, x, col, acc);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    alignas(16) float block_sums[4];
    _mm_store_ps(block_sums, vec_sums(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
    float* const sums = args.sums + (row + r) * args.sums_stride + output;
    for (int o = 0; o < outputs; ++o) sums[o] = args.first ? block_sums[o] : sums[o] + block_sums[o];
  }
}

template <typename Format, int kRows, bool kPrefetch>
void outputs_of_rows(const LinearTileArgs& args, int64_t row) {
  for (int64_t output = 0; output < args.outputs; output += kTileOutputs)
    tile<Format, kRows, kPrefetch>(args, row, output);
}

template <typename Format, bool kPrefetch>
void product(const LinearTileArgs& args) {
  int64_t row = 0;
  for (; row + kTileRows <= args.rows; row += kTileRows) {
    if (row == 0) {
      outputs_of_rows<Format, kTileRows, kPrefetch>(args, row);
    } else {
      outputs_of_rows<Format, kTileRows, false>(args, row);
    }
  }
  switch (args.rows - row) {
#if defined(__AVX512F__)
    case 5:
      return outputs_of_rows<Format, 5, kPrefetch>(args, row);
    case 4:
      return outputs_of_rows<Format, 4, kPrefetch>(args, row);
    case 3:
      return outputs_of_rows<Format, 3, kPrefetch>(args, row);
#endif
#if defined(__AVX2__)
    case 2:
      return outputs_of_rows<Format, 2, kPrefetch>(args, row);
#endif
    case 1:
      return outputs_of_rows<Format, 1, kPrefetch>(args, row);
    default:
      return;
  }
}

template <typename Format>
void linear(const LinearTileArgs& args) {
  if (args.ahead != nullptr) {
    product<Format, true>(args);
  } else {
    product<Format, false>(args);
  }
}

}  // namespace

extern const LinearKernels kLinearKernels;
const LinearKernels kLinearKernels = {
    .f32 = linear<F32>,
    .f16 = linear<F16>,
    .bf16 = linear<BF16>,
#if defined(__AVX512BF16__)
    .bf16_rounds_x = true,
#else
    .bf16_rounds_x = false,
#endif
    .max_rows = kTileRows,
};

}  // namespace onepass::cpu::ONEPASS_ISA
