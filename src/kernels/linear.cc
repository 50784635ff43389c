#include "kernels/linear.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/isa_dispatch.h"

namespace onepass {
namespace {

constexpr int64_t kPanel = PackedMatrix::kPanelRows;

// Rows of activations that are multiplied with a panel in one go: their outputs (64 KiB) stay in the L2 cache beside
// the panel's block.
constexpr int64_t kRowBlock = 256;

// Columns of a panel that stay in the L2 cache while kRowBlock rows pass over them: 64 KiB of bf16 weights.
constexpr int64_t kColBlock = 512;

// Writes panel `panel` of the matrix stacked from `slices`: element (row, col) at pos(row, col), in units of T.
template <typename T>
void pack_panel(std::span<const MatrixSlice> slices, int64_t cols, int64_t panel, bool pairs, T* out) {
  const int64_t padded_cols = pairs ? (cols + 1) / 2 * 2 : cols;
  const T* rows[kPanel];
  int64_t first = panel * kPanel;
  for (int64_t r = 0; r < kPanel; ++r) {
    int64_t row = first + r;
    rows[r] = nullptr;
    for (const MatrixSlice& slice : slices) {
      if (row < slice.rows) {
        rows[r] = static_cast<const T*>(slice.data) + row * cols;
        break;
      }
      row -= slice.rows;
    }
  }
  // Blocks of 64 columns: 64 source rows of one or two cache lines each, and a destination of 8 KiB, both within the L1
  // cache.
  constexpr int64_t kBlock = 64;
  for (int64_t begin = 0; begin < padded_cols; begin += kBlock) {
    const int64_t end = std::min(padded_cols, begin + kBlock);
    if (pairs) {
      for (int64_t r = 0; r < kPanel; ++r) {
        for (int64_t col = begin; col < end; col += 2) {
          T* const destination = out + (col / 2 * kPanel + r) * 2;
          destination[0] = rows[r] != nullptr ? rows[r][col] : T{};
          destination[1] = rows[r] != nullptr && col + 1 < cols ? rows[r][col + 1] : T{};
        }
      }
    } else {
      for (int64_t r = 0; r < kPanel; ++r) {
        for (int64_t col = begin; col < end; ++col) out[col * kPanel + r] = rows[r] != nullptr ? rows[r][col] : T{};
      }
    }
  }
}

// The activations as the kernel takes them.
struct PackedX {
  const uint32_t* data = nullptr;
  int64_t row_stride = 0;  // in units of 4 bytes
  int64_t units_per_step = 1;
};

PackedX pack_x(const LinearParams& p, const cpu::LinearKernels& kernels, LinearWorkspace& workspace,
               const Stream& stream) {
  const PackedMatrix& w = *p.weight;
  const int64_t cols = w.cols();
  if (w.dtype() == DType::kBF16 && kernels.bf16_pairs) {
    const int64_t pairs = w.padded_cols() / 2;
    workspace.packed_x.resize(std::max<size_t>(workspace.packed_x.size(), p.num_rows * pairs));
    uint32_t* const packed = workspace.packed_x.data();
    // A fork costs more than the conversion of a few rows.
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, cols));
    stream.pool->parallel_for(p.num_rows, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row)
        kernels.to_bf16_pairs(p.x + row * p.x_row_stride, cols, packed + row * pairs);
    });
    return {packed, pairs, 1};
  }
  const int64_t units_per_step = w.dtype() == DType::kBF16 ? 2 : 1;
  if (w.padded_cols() == cols) return {reinterpret_cast<const uint32_t*>(p.x), p.x_row_stride, units_per_step};
  // The last pair of columns is half empty.
  const int64_t padded = w.padded_cols();
  workspace.packed_x.resize(std::max<size_t>(workspace.packed_x.size(), p.num_rows * padded));
  uint32_t* const packed = workspace.packed_x.data();
  for (int64_t row = 0; row < p.num_rows; ++row) {
    std::memcpy(packed + row * padded, p.x + row * p.x_row_stride, cols * sizeof(float));
    packed[row * padded + cols] = 0;
  }
  return {packed, padded, units_per_step};
}

// y[row][first ..] = c (+ bias) (+ y), for the panel's outputs that exist.
void store_outputs(const LinearParams& p, int64_t panel, int64_t row_begin, int64_t rows, const float* c) {
  const int64_t first = panel * kPanel;
  const int64_t count = std::min(kPanel, p.weight->rows() - first);
  for (int64_t r = 0; r < rows; ++r) {
    float* const y = p.y + (row_begin + r) * p.y_row_stride + first;
    const float* const sums = c + r * kPanel;
    const float* const bias = p.bias != nullptr ? p.bias + first : nullptr;
    if (p.accumulate) {
      for (int64_t i = 0; i < count; ++i) y[i] += sums[i] + (bias != nullptr ? bias[i] : 0.0f);
    } else if (bias != nullptr) {
      for (int64_t i = 0; i < count; ++i) y[i] = sums[i] + bias[i];
    } else {
      std::memcpy(y, sums, count * sizeof(float));
    }
  }
}

}  // namespace

StatusOr<PackedMatrix> PackedMatrix::pack(std::span<const MatrixSlice> slices, int64_t cols, const Stream& stream) {
  ONEPASS_CHECK(!slices.empty());
  ONEPASS_CHECK_GE(cols, 1);
  PackedMatrix matrix;
  matrix.cols_ = cols;
  matrix.dtype_ = slices[0].dtype;
  for (const MatrixSlice& slice : slices) {
    ONEPASS_CHECK_EQ(slice.dtype, matrix.dtype_);
    matrix.rows_ += slice.rows;
  }
  const bool pairs = matrix.dtype_ == DType::kBF16;
  const int64_t panels = (matrix.rows_ + kPanel - 1) / kPanel;
  const int64_t panel_elements = matrix.padded_cols() * kPanel;
  ONEPASS_ASSIGN_OR_RETURN(matrix.data_, Buffer::allocate(panels * panel_elements * size_of(matrix.dtype_)));
  stream.pool->parallel_dynamic(panels, [&](int64_t panel, int) {
    if (matrix.dtype_ == DType::kF32) {
      pack_panel(slices, cols, panel, pairs, matrix.data_.as<uint32_t>() + panel * panel_elements);
    } else {
      pack_panel(slices, cols, panel, pairs, matrix.data_.as<uint16_t>() + panel * panel_elements);
    }
  });
  return matrix;
}

void PackedMatrix::unpack_row(int64_t row, float* out) const {
  ONEPASS_CHECK_GE(row, 0);
  ONEPASS_CHECK_LT(row, rows_);
  const int64_t panel = row / kPanel * padded_cols() * kPanel;
  const int64_t r = row % kPanel;
  for (int64_t col = 0; col < cols_; ++col) {
    const int64_t at = dtype_ == DType::kBF16 ? (col / 2 * kPanel + r) * 2 + col % 2 : col * kPanel + r;
    out[col] = load_float(data_.data(), dtype_, panel + at);
  }
}

void run_linear(const LinearParams& p, LinearWorkspace& workspace, const Stream& stream) {
  if (p.num_rows == 0) return;
  const PackedMatrix& w = *p.weight;
  const cpu::LinearKernels& kernels = cpu::linear_kernels(stream.isa);
  const auto kernel = w.dtype() == DType::kF32 ? kernels.f32 : w.dtype() == DType::kF16 ? kernels.f16 : kernels.bf16;
  const PackedX x = pack_x(p, kernels, workspace, stream);
  const int64_t columns_per_step = w.dtype() == DType::kBF16 ? 2 : 1;
  const int64_t steps = w.padded_cols() / columns_per_step;
  const int64_t step_bytes = kPanel * columns_per_step * static_cast<int64_t>(size_of(w.dtype()));
  // Few rows leave room in the cache for the whole panel: one block.
  const int64_t step_block = p.num_rows <= 6 ? steps : kColBlock / columns_per_step;
  const int64_t panels = (w.rows() + kPanel - 1) / kPanel;

  stream.pool->parallel_for(panels, 1, [&](int64_t panel_begin, int64_t panel_end, int) {
    alignas(64) float c[kRowBlock * kPanel];
    for (int64_t row = 0; row < p.num_rows; row += kRowBlock) {
      const int64_t rows = std::min(kRowBlock, p.num_rows - row);
      for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        const char* const data = static_cast<const char*>(w.data()) + panel * steps * step_bytes;
        for (int64_t step = 0; step < steps; step += step_block) {
          kernel({.x = x.data + row * x.row_stride + step * x.units_per_step,
                  .x_row_stride = x.row_stride,
                  .rows = rows,
                  .panel = data + step * step_bytes,
                  .steps = std::min(step_block, steps - step),
                  .c = c,
                  .first = step == 0,
                  .prefetch = row == 0});
        }
        store_outputs(p, panel, row, rows, c);
      }
    }
  });
}

}  // namespace onepass
