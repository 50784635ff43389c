#include "kernels/linear.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/isa_dispatch.h"

namespace onepass {
namespace {

// Outputs that are computed together: their weights of one column block (128 KiB) stay in the L2 cache while all rows
// pass.
constexpr int64_t kOutputBlock = 64;

// Rows of activations between which the sums of an output block are kept: 64 KiB.
constexpr int64_t kRowBlock = 256;

// From so many rows on, weights that do not lie at cache lines (a safetensors file begins its data anywhere) are first
// copied to where they do, a block at a time: every vector of them would cost two loads, again for each six rows. The
// products of a 0.5B model with 64 rows take 93 ms where they lie, 81 ms at cache lines, 87 ms with the copy (Zen 5,
// two cores).
constexpr int64_t kMinRowsToAlign = 32;

// Columns of a block: six rows of activations and four of weights, 20 KiB, stay in the L1 cache of 32 KiB.
int64_t column_block(bool two_byte_activations) { return two_byte_activations ? 1024 : 512; }
constexpr int64_t kMaxBlockRowBytes = 2048;  // of weights

// Consecutive outputs within one slice.
struct OutputBlock {
  const MatrixSlice* slice;
  int64_t slice_row;  // first row within the slice
  int64_t output;     // first row within the matrix
  int64_t count;
};

std::vector<OutputBlock> output_blocks(const WeightMatrix& w) {
  std::vector<OutputBlock> blocks;
  int64_t output = 0;
  for (const MatrixSlice& slice : w.slices()) {
    for (int64_t row = 0; row < slice.rows; row += kOutputBlock) {
      blocks.push_back({&slice, row, output + row, std::min(kOutputBlock, slice.rows - row)});
    }
    output += slice.rows;
  }
  return blocks;
}

// The activations as the kernels take them: rows filled up with zeros to whole vectors, in bf16 where they multiply so.
struct PackedX {
  const std::byte* data = nullptr;
  int64_t row_stride = 0;  // in elements
  int64_t element_size = sizeof(float);
};

PackedX pack_x(const LinearParams& p, bool to_bf16, const cpu::RowKernels& kernels, LinearWorkspace& workspace,
               const Stream& stream) {
  constexpr int64_t kLanes = 32;  // of the widest vector, in bf16
  const int64_t cols = p.weight->cols(), padded = (cols + kLanes - 1) / kLanes * kLanes;
  if (!to_bf16 && padded == cols) return {reinterpret_cast<const std::byte*>(p.x), p.x_row_stride, sizeof(float)};
  const int64_t element_size = to_bf16 ? sizeof(uint16_t) : sizeof(float);
  constexpr size_t kCacheLine = 64;  // a vector that crosses two of them costs two loads
  const size_t bytes = static_cast<size_t>(p.num_rows * padded * element_size);
  workspace.packed_x.resize(std::max(workspace.packed_x.size(), bytes + kCacheLine));
  const size_t past = reinterpret_cast<uintptr_t>(workspace.packed_x.data()) % kCacheLine;
  std::byte* const packed = workspace.packed_x.data() + (kCacheLine - past) % kCacheLine;
  const int64_t grain = std::max<int64_t>(1, 32768 / cols);  // a fork costs more than the conversion of a few rows
  stream.pool->parallel_for(p.num_rows, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const float* const from = p.x + row * p.x_row_stride;
      std::byte* const to = packed + row * padded * element_size;
      if (to_bf16) {
        kernels.to_bf16(from, cols, reinterpret_cast<uint16_t*>(to));
      } else {
        std::memcpy(to, from, cols * sizeof(float));
      }
      std::memset(to + cols * element_size, 0, (padded - cols) * element_size);
    }
  });
  return {packed, padded, element_size};
}

// y[row][output ..] = sums (+ bias) (+ y).
void store_outputs(const LinearParams& p, const OutputBlock& block, int64_t first_row, int64_t rows,
                   const float* sums) {
  const float* const bias = p.bias != nullptr ? p.bias + block.output : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    float* const y = p.y + (first_row + r) * p.y_row_stride + block.output;
    const float* const sum = sums + r * kOutputBlock;
    if (p.accumulate) {
      for (int64_t i = 0; i < block.count; ++i) y[i] += sum[i] + (bias != nullptr ? bias[i] : 0.0f);
    } else if (bias != nullptr) {
      for (int64_t i = 0; i < block.count; ++i) y[i] = sum[i] + bias[i];
    } else {
      std::memcpy(y, sum, block.count * sizeof(float));
    }
  }
}

}  // namespace

WeightMatrix::WeightMatrix(std::vector<MatrixSlice> slices, int64_t cols) : slices_(std::move(slices)), cols_(cols) {
  ONEPASS_CHECK(!slices_.empty());
  ONEPASS_CHECK_GE(cols, 1);
  for (const MatrixSlice& slice : slices_) {
    ONEPASS_CHECK_EQ(slice.dtype, slices_[0].dtype);
    rows_ += slice.rows;
  }
}

void WeightMatrix::read_row(int64_t row, float* out) const {
  ONEPASS_CHECK_GE(row, 0);
  ONEPASS_CHECK_LT(row, rows_);
  auto slice = slices_.begin();
  for (; row >= slice->rows; ++slice) row -= slice->rows;
  convert_to_float(
      static_cast<const std::byte*>(slice->data) + row * cols_ * static_cast<int64_t>(size_of(slice->dtype)),
      slice->dtype, cols_, out);
}

void run_linear(const LinearParams& p, LinearWorkspace& workspace, const Stream& stream) {
  if (p.num_rows == 0) return;
  const WeightMatrix& w = *p.weight;
  const cpu::LinearKernels& kernels = cpu::linear_kernels(stream.isa);
  const cpu::LinearKernel& kernel = w.dtype() == DType::kF32   ? kernels.f32
                                    : w.dtype() == DType::kF16 ? kernels.f16
                                                               : kernels.bf16;
  const bool to_bf16 = w.dtype() == DType::kBF16 && kernels.bf16_rounds_x;
  const PackedX x = pack_x(p, to_bf16, cpu::row_kernels(stream.isa), workspace, stream);
  const int64_t cols = w.cols(), block_cols = column_block(to_bf16);
  const int64_t element = static_cast<int64_t>(size_of(w.dtype()));
  const std::vector<OutputBlock> blocks = output_blocks(w);

  // All columns of the block's outputs, from `col` on.
  const auto arguments = [&](const OutputBlock& block, int64_t row, int64_t rows, int64_t col, float* sums) {
    return cpu::LinearTileArgs{
        .x = x.data + (row * x.row_stride + col) * x.element_size,
        .x_row_stride = x.row_stride,
        .rows = rows,
        .w = static_cast<const std::byte*>(block.slice->data) + (block.slice_row * cols + col) * element,
        .w_row_stride = cols,
        .outputs = block.count,
        .cols = cols - col,
        .block_cols = block_cols,
        .sums = sums,
        .sums_stride = kOutputBlock,
        .first = col == 0};
  };
  // What a thread computes after block i's columns from `col` on: their next columns, or the next block.
  const auto ask_for_next = [&](cpu::LinearTileArgs& tile, int64_t i, int64_t end, int64_t col) {
    int64_t next_col = col + block_cols;
    if (next_col >= cols) {
      if (++i == end) return;
      next_col = 0;
    }
    const OutputBlock& next = blocks[i];
    tile.next_w = static_cast<const std::byte*>(next.slice->data) + (next.slice_row * cols + next_col) * element;
    tile.next_rows = next.count;
    tile.next_row_bytes = std::min(block_cols, cols - next_col) * element;
    tile.next_row_stride = cols * element;
  };
  const auto align = [&](cpu::LinearTileArgs& tile, std::byte* copy) {
    const int64_t row_bytes = tile.cols * element, stride = (row_bytes + 63) / 64 * 64;
    for (int64_t row = 0; row < tile.outputs; ++row) {
      std::memcpy(copy + row * stride, static_cast<const std::byte*>(tile.w) + row * cols * element,
                  static_cast<size_t>(row_bytes));
    }
    tile.w = copy;
    tile.w_row_stride = stride / element;
  };
  stream.pool->parallel_for(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end, int) {
    alignas(64) float sums[kRowBlock * kOutputBlock];
    alignas(64) std::byte aligned[kOutputBlock * kMaxBlockRowBytes];
    for (int64_t i = begin; i < end; ++i) {
      const OutputBlock& block = blocks[i];
      for (int64_t row = 0; row < p.num_rows; row += kRowBlock) {
        const int64_t rows = std::min(kRowBlock, p.num_rows - row);
        const bool is_last_row_block = row + rows == p.num_rows;
        if (rows <= kernels.max_rows) {
          kernel.stream(arguments(block, row, rows, 0, sums));
        } else {
          for (int64_t col = 0; col < cols; col += block_cols) {
            cpu::LinearTileArgs tile = arguments(block, row, rows, col, sums);
            tile.cols = std::min(block_cols, cols - col);
            if (is_last_row_block) ask_for_next(tile, i, end, col);
            const bool is_aligned = reinterpret_cast<uintptr_t>(tile.w) % 64 == 0 && cols * element % 64 == 0;
            if (rows >= kMinRowsToAlign && !is_aligned) align(tile, aligned);
            kernel.tile(tile);
          }
        }
        store_outputs(p, block, row, rows, sums);
      }
    }
  });
}

}  // namespace onepass
