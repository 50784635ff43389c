// The small operators of a decoder on a GPU against plain loops in float64.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/cuda/cuda_kernel_test.h"
#include "kernels/cuda/fill_random.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/silu_and_mul.h"

namespace onepass {
namespace {

class ElementwiseCudaTest : public CudaKernelTest {
 protected:
  DType random_dtype() { return one_of({DType::kF32, DType::kF16, DType::kBF16}); }
  // Odd ones too, and those at which the kernels change.
  int64_t random_cols() {
    return one_of<int64_t>({1,    8,    21,   64,   72,   80,   100,  128,   192,   256,   264,  896,
                            1000, 1024, 2048, 4096, 5120, 8192, 8200, 12288, 16384, 16392, 18432});
  }
  void finish(const Status& status) {
    ASSERT_TRUE(status.ok()) << status;
    const Status done = stream_->synchronize();
    ASSERT_TRUE(done.ok()) << done;
  }
};

TEST_F(ElementwiseCudaTest, RmsNorm) {
  for (int round = 0; round < 120; ++round) {
    const DType x_dtype = random_dtype(), out_dtype = random_dtype();
    const int64_t cols = random_cols(), groups = one_of<int64_t>({0, 1, 3, 17}), rows = one_of<int64_t>({1, 2, 5, 8});
    const bool in_place = x_dtype == out_dtype && rng_() % 2 == 0;
    const int64_t padding = 16 * static_cast<int64_t>(rng_() % 2);
    const int64_t x_row = (cols + 7) / 8 * 8 + padding, x_group = rows * x_row + 2 * padding;
    const int64_t out_row = in_place ? x_row : cols % 2 == 0 ? cols : cols + 15;
    const int64_t out_group = in_place ? x_group : rows * out_row;
    SCOPED_TRACE(testing::Message() << x_dtype << " to " << out_dtype << ", " << groups << " x " << rows << " x "
                                    << cols << (in_place ? ", in place" : ""));
    const std::vector<float> x = random_values(groups * x_group, x_dtype), weight = random_values(cols, DType::kF32);
    const CudaBuffer x_device = upload(x, x_dtype), weight_device = upload(weight);
    std::vector<float> expected = in_place ? x : std::vector<float>(groups * out_group, 7.0f);
    const CudaBuffer out_device = upload(expected, out_dtype);
    const float eps = round % 2 == 0 ? 1e-6f : 0.1f;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t r = 0; r < rows; ++r) {
        const float* from = x.data() + g * x_group + r * x_row;
        double sum = 0.0;
        for (int64_t c = 0; c < cols; ++c) sum += double{from[c]} * from[c];
        const double factor = 1.0 / std::sqrt(sum / static_cast<double>(cols) + eps);
        for (int64_t c = 0; c < cols; ++c) {
          expected[g * out_group + r * out_row + c] = static_cast<float>(from[c] * factor * weight[c]);
        }
      }
    }
    const CudaBuffer& out = in_place ? x_device : out_device;
    finish(run_rms_norm_cuda({.x = x_device.data(),
                              .x_dtype = x_dtype,
                              .x_group_stride = x_group,
                              .x_row_stride = x_row,
                              .weight = weight_device.as<float>(),
                              .eps = eps,
                              .out = out.data(),
                              .out_dtype = out_dtype,
                              .out_group_stride = out_group,
                              .out_row_stride = out_row,
                              .num_groups = groups,
                              .rows = rows,
                              .cols = cols},
                             stream_->get()));
    expect_near(download(out, out_dtype, groups * out_group), expected, out_dtype);
    if (HasFatalFailure()) return;
  }
}

TEST_F(ElementwiseCudaTest, SiluAndMul) {
  for (int round = 0; round < 60; ++round) {
    const DType dtype = random_dtype();
    const int64_t cols = random_cols(), rows = one_of<int64_t>({0, 1, 2, 33});
    const int64_t stride = (2 * cols + 7) / 8 * 8 + 8 * static_cast<int64_t>(rng_() % 2),
                  out_stride = (cols + 7) / 8 * 8;
    SCOPED_TRACE(testing::Message() << dtype << ", " << rows << " x " << cols);
    const std::vector<float> gate_up = random_values(rows * stride, dtype);
    std::vector<float> expected(rows * out_stride, 7.0f);
    const CudaBuffer gate_up_device = upload(gate_up, dtype), out = upload(expected, dtype);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const double gate = gate_up[r * stride + c];
        expected[r * out_stride + c] =
            static_cast<float>(gate / (1.0 + std::exp(-gate)) * gate_up[r * stride + cols + c]);
      }
    }
    finish(run_silu_and_mul_cuda({.dtype = dtype,
                                  .gate_up = gate_up_device.data(),
                                  .gate_up_row_stride = stride,
                                  .out = out.data(),
                                  .out_row_stride = out_stride,
                                  .rows = rows,
                                  .cols = cols},
                                 stream_->get()));
    expect_near(download(out, dtype, rows * out_stride), expected, dtype);
    if (HasFatalFailure()) return;
  }
}

TEST_F(ElementwiseCudaTest, SiluOfLargeNumbers) {
  const std::vector<float> gate_up = {-200.0f, 200.0f, 0.0f, -1e30f, 2.0f, 3.0f, 5.0f, 1.0f};
  const CudaBuffer device = upload(gate_up), out = upload(std::vector<float>(4));
  finish(run_silu_and_mul_cuda({.dtype = DType::kF32,
                                .gate_up = device.data(),
                                .gate_up_row_stride = 8,
                                .out = out.data(),
                                .out_row_stride = 4,
                                .rows = 1,
                                .cols = 4},
                               stream_->get()));
  expect_near(download(out, DType::kF32, 4), {0.0f, 600.0f, 0.0f, 0.0f}, DType::kF32);
}

TEST_F(ElementwiseCudaTest, GatherRows) {
  for (int round = 0; round < 60; ++round) {
    const DType table_dtype = random_dtype(), out_dtype = random_dtype();
    const int64_t cols = random_cols(), rows = one_of<int64_t>({0, 1, 2, 65}), table_rows = one_of<int64_t>({1, 19});
    const int64_t stride = (cols + 7) / 8 * 8, out_stride = stride + 8;
    SCOPED_TRACE(testing::Message() << table_dtype << " to " << out_dtype << ", " << rows << " x " << cols);
    const std::vector<float> table = random_values(table_rows * stride, table_dtype);
    std::vector<int32_t> index(rows);
    std::vector<float> expected(rows * out_stride, 7.0f);
    for (int64_t r = 0; r < rows; ++r) {
      index[r] = static_cast<int32_t>(rng_() % table_rows);
      if (rng_() % 5 == 0) index[r] = one_of<int32_t>({-1, static_cast<int32_t>(table_rows), 2147480000});
      const bool exists = index[r] >= 0 && index[r] < table_rows;
      for (int64_t c = 0; c < cols; ++c) expected[r * out_stride + c] = exists ? table[index[r] * stride + c] : 0.0f;
    }
    const CudaBuffer table_device = upload(table, table_dtype), index_device = upload(index);
    const CudaBuffer out = upload(std::vector<float>(rows * out_stride, 7.0f), out_dtype);
    finish(run_gather_rows_cuda({.table = table_device.data(),
                                 .table_dtype = table_dtype,
                                 .table_rows = table_rows,
                                 .table_row_stride = stride,
                                 .index = index_device.as<int32_t>(),
                                 .out = out.data(),
                                 .out_dtype = out_dtype,
                                 .out_row_stride = out_stride,
                                 .rows = rows,
                                 .cols = cols},
                                stream_->get()));
    expect_near(download(out, out_dtype, rows * out_stride), expected, out_dtype);
    if (HasFatalFailure()) return;
  }
}

// As models/weight_source.cc has them.
float uniform(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-24f - 0.5f;
}

TEST_F(ElementwiseCudaTest, FillRandomAsTheCpuDoes) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const int64_t elements = 3'000'001;
    const uint64_t seed = rng_();
    const float scale = std::sqrt(12.0f / 4096), offset = dtype == DType::kF16 ? 1.0f : 0.0f;
    const CudaBuffer data = CudaBuffer::allocate(elements * size_of(dtype)).value();
    finish(run_fill_random_cuda(
        {.data = data.data(), .dtype = dtype, .elements = elements, .offset = offset, .scale = scale, .seed = seed},
        stream_->get()));
    const std::vector<float> found = download(data, dtype, elements);
    for (int64_t i = 0; i < elements; ++i) {
      float expected = 0.0f;
      store_float(&expected, dtype, 0, offset + scale * uniform(seed, i));
      ASSERT_EQ(found[i], load_float(&expected, dtype, 0)) << "element " << i << " of " << dtype;
    }
  }
}

TEST(ElementwiseCuda, NamesWhatIsWrong) {
  EXPECT_EQ(run_rms_norm_cuda({.x_dtype = DType::kI32, .rows = 1, .cols = 1}, nullptr).message(),
            "rms_norm: x_dtype and out_dtype: expected float32, float16 or bfloat16, found int32 and bfloat16");
  EXPECT_EQ(run_silu_and_mul_cuda({.rows = 1}, nullptr).message(), "silu_and_mul: cols: expected at least 1, found 0");
  EXPECT_EQ(run_gather_rows_cuda({.rows = -1, .cols = 1}, nullptr).message(),
            "gather_rows: rows and table_rows: expected at least 0, found -1 and 0");
  EXPECT_EQ(run_fill_random_cuda({.elements = 1}, nullptr).message(),
            "fill_random: data: expected an address, found null");
}

}  // namespace
}  // namespace onepass
