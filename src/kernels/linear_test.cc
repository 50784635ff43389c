#include "kernels/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace onepass {
namespace {

class LinearTest : public testing::TestWithParam<std::tuple<CpuIsa, DType>> {
 protected:
  std::vector<float> random_floats(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }
  int64_t draw(int64_t low, int64_t high) { return low + static_cast<int64_t>(random_() % (high - low + 1)); }

  std::mt19937 random_{5};
};

INSTANTIATE_TEST_SUITE_P(Isas, LinearTest,
                         testing::Combine(testing::ValuesIn(supported_cpu_isas()),
                                          testing::Values(DType::kF32, DType::kF16, DType::kBF16)),
                         [](const auto& param_info) {
                           return std::string(to_string(std::get<0>(param_info.param))) + "_" +
                                  std::string(to_string(std::get<1>(param_info.param)));
                         });

// Random shapes, strides, slices, bias and accumulation against a plain sum in double.
TEST_P(LinearTest, EqualsAPlainSumInDouble) {
  const auto [isa, dtype] = GetParam();
  for (int round = 0; round < 40; ++round) {
    ThreadPool pool(static_cast<int>(draw(1, 3)));
    const Stream stream{.pool = &pool, .isa = isa};
    const int64_t m = round % 4 == 0 ? draw(250, 270) : draw(1, 70), n = draw(1, 200),
                  k = draw(1, round % 5 == 0 ? 1200 : 150);
    const int64_t x_stride = k + draw(0, 3), y_stride = n + draw(0, 3);
    const bool with_bias = draw(0, 1) != 0, accumulate = draw(0, 1) != 0;
    const std::vector<float> x = random_floats(m * x_stride), bias = random_floats(n), w = random_floats(n * k);
    std::vector<std::byte> stored(n * k * size_of(dtype));
    convert_from_float(w.data(), dtype, n * k, stored.data());
    const int64_t cut = draw(0, n);
    const MatrixSlice slices[] = {{stored.data(), dtype, cut},
                                  {stored.data() + cut * k * size_of(dtype), dtype, n - cut}};
    const WeightMatrix weight({slices[0], slices[1]}, k);
    ASSERT_EQ(weight.rows(), n);
    std::vector<float> y = random_floats(m * y_stride);
    const std::vector<float> before = y;
    if (!accumulate) {
      for (int64_t r = 0; r < m; ++r) std::fill_n(y.begin() + r * y_stride, n, std::numeric_limits<float>::quiet_NaN());
    }
    LinearWorkspace workspace;
    run_linear({.x = x.data(),
                .x_row_stride = x_stride,
                .num_rows = m,
                .weight = &weight,
                .bias = with_bias ? bias.data() : nullptr,
                .y = y.data(),
                .y_row_stride = y_stride,
                .accumulate = accumulate},
               workspace, stream);
    const bool rounds_x = dtype == DType::kBF16 && isa == CpuIsa::kAvx512Bf16;
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t c = 0; c < y_stride; ++c) {
        if (c >= n) {
          ASSERT_EQ(y[r * y_stride + c], before[r * y_stride + c]) << "wrote past the row";
          continue;
        }
        double sum = 0, magnitude = 1;
        for (int64_t i = 0; i < k; ++i) {
          const float xi = x[r * x_stride + i];
          const double product =
              double(rounds_x ? to_float(to_bfloat16(xi)) : xi) * load_float(stored.data(), dtype, c * k + i);
          sum += product;
          magnitude += std::fabs(product);
        }
        if (with_bias) sum += bias[c];
        if (accumulate) sum += before[r * y_stride + c];
        ASSERT_NEAR(y[r * y_stride + c], sum, 2e-6 * magnitude) << m << "x" << n << "x" << k << " at " << r << "," << c;
      }
    }
    std::vector<float> row(k);
    const int64_t any = draw(0, n - 1);
    weight.read_row(any, row.data());
    for (int64_t i = 0; i < k; ++i) ASSERT_EQ(row[i], load_float(stored.data(), dtype, any * k + i));
  }
}

// A token's result is the same, bit for bit, alone and in any batch, at any place, with any number of threads.
TEST_P(LinearTest, ARowDoesNotDependOnItsBatch) {
  const auto [isa, dtype] = GetParam();
  const int64_t n = 200, k = 1333, m = 300;
  const std::vector<float> x = random_floats(m * k), w = random_floats(n * k);
  std::vector<std::byte> stored(n * k * size_of(dtype));
  convert_from_float(w.data(), dtype, n * k, stored.data());
  const MatrixSlice slice{stored.data(), dtype, n};
  ThreadPool one(1), three(3);
  const WeightMatrix weight({slice}, k);
  LinearWorkspace workspace;
  const auto run = [&](int64_t first, int64_t rows, ThreadPool& pool) {
    std::vector<float> y(rows * n);
    run_linear({.x = x.data() + first * k,
                .x_row_stride = k,
                .num_rows = rows,
                .weight = &weight,
                .y = y.data(),
                .y_row_stride = n},
               workspace, {.pool = &pool, .isa = isa});
    return y;
  };
  const std::vector<float> all = run(0, m, three);
  for (int64_t rows : {1, 2, 3, 5, 6, 7, 13}) {
    for (int64_t first : {int64_t{0}, int64_t{1}, draw(0, m - rows), m - rows}) {
      const std::vector<float> some = run(first, rows, rows % 2 == 0 ? one : three);
      ASSERT_TRUE(std::equal(some.begin(), some.end(), all.begin() + first * n)) << rows << " rows from " << first;
    }
  }
}

}  // namespace
}  // namespace onepass
