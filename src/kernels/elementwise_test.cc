#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kernels/activation.h"
#include "kernels/embedding.h"
#include "kernels/kv_store.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

namespace onepass {
namespace {

class ElementwiseTest : public testing::TestWithParam<CpuIsa> {
 protected:
  std::vector<float> random_floats(int64_t count, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }

  std::mt19937 random_{6};
  ThreadPool pool_{2};
  const Stream stream_{.pool = &pool_, .isa = GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Isas, ElementwiseTest, testing::ValuesIn(supported_cpu_isas()),
                         [](const auto& param_info) { return std::string(to_string(param_info.param)); });

TEST_P(ElementwiseTest, RmsNormOfTokensAndHeads) {
  for (int64_t cols : {1, 7, 16, 64, 100, 896}) {
    const int64_t groups = 5, rows = 3, row_stride = cols + 2, group_stride = rows * row_stride + 5;
    const std::vector<float> x = random_floats(groups * group_stride), weight = random_floats(cols);
    std::vector<float> out(groups * rows * cols, std::numeric_limits<float>::quiet_NaN());
    run_rms_norm({.x = x.data(),
                  .x_group_stride = group_stride,
                  .x_row_stride = row_stride,
                  .weight = weight.data(),
                  .eps = 1e-3f,
                  .out = out.data(),
                  .out_group_stride = rows * cols,
                  .out_row_stride = cols,
                  .num_groups = groups,
                  .rows = rows,
                  .cols = cols},
                 stream_);
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t r = 0; r < rows; ++r) {
        const float* row = x.data() + g * group_stride + r * row_stride;
        double sum = 0;
        for (int64_t c = 0; c < cols; ++c) sum += double(row[c]) * row[c];
        for (int64_t c = 0; c < cols; ++c) {
          const double expected = row[c] / std::sqrt(sum / cols + 1e-3) * weight[c];
          ASSERT_NEAR(out[(g * rows + r) * cols + c], expected, 1e-6 * (1 + std::fabs(expected)));
        }
      }
    }
  }
}

TEST_P(ElementwiseTest, SiluAndMulOverTheWholeRange) {
  const int64_t rows = 50, cols = 333;
  std::vector<float> gate_up = random_floats(rows * 2 * cols, 10.0f);
  gate_up[0] = 1000.0f;
  gate_up[1] = -1000.0f;
  gate_up[2] = 0.0f;
  std::vector<float> out(rows * cols, std::numeric_limits<float>::quiet_NaN());
  run_silu_and_mul({.gate_up = gate_up.data(),
                    .gate_up_row_stride = 2 * cols,
                    .out = out.data(),
                    .out_row_stride = cols,
                    .rows = rows,
                    .cols = cols},
                   stream_);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const double gate = gate_up[r * 2 * cols + c], up = gate_up[r * 2 * cols + cols + c];
      const double expected = gate / (1 + std::exp(-gate)) * up;
      ASSERT_NEAR(out[r * cols + c], expected, 1e-6 * std::fabs(expected) + 1e-30) << gate;
    }
  }
}

TEST_P(ElementwiseTest, RopeRotatesHalvesAlsoAtLargePositions) {
  const int64_t heads = 3, head_dim = 80, rotary_dim = 64, tokens = 7, stride = heads * head_dim + 8;
  std::vector<double> inv_freq(rotary_dim / 2);
  for (size_t i = 0; i < inv_freq.size(); ++i) inv_freq[i] = std::pow(500000.0, -2.0 * i / rotary_dim);
  const std::vector<int32_t> positions = {0, 1, 5, 4095, 131071, 2, 2};
  std::vector<float> x = random_floats(tokens * stride);
  const std::vector<float> before = x;
  run_rope({.x = x.data(),
            .row_stride = stride,
            .num_heads = heads,
            .head_dim = head_dim,
            .rotary_dim = rotary_dim,
            .num_tokens = tokens,
            .positions = positions.data(),
            .inv_freq = inv_freq.data(),
            .attention_factor = 1.25f},
           stream_);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < stride; ++i) {
      const int64_t d = i % head_dim, half = rotary_dim / 2, base = t * stride + i - d;
      double expected = before[t * stride + i];
      if (i < heads * head_dim && d < rotary_dim) {
        const double angle = positions[t] * inv_freq[d % half];
        const double a = before[base + d % half], b = before[base + d % half + half];
        expected =
            1.25 * (d < half ? a * std::cos(angle) - b * std::sin(angle) : b * std::cos(angle) + a * std::sin(angle));
      }
      ASSERT_NEAR(x[t * stride + i], expected, 2e-6) << "token " << t << " element " << i;
    }
  }
}

TEST_P(ElementwiseTest, KvStorePutsTokensIntoTheirSlotsAndNowhereElse) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const int heads = 2, dim = 19, dim_v = 12, tokens = 9, slots = 40;
    const int64_t k_stride = heads * dim + 3, v_stride = heads * dim_v + 1;
    std::vector<float> k = random_floats(tokens * k_stride), v = random_floats(tokens * v_stride);
    k[0] = 1e-6f;  // subnormal in half precision
    k[1] = 1e6f;   // infinite in half precision
    k[2] = std::numeric_limits<float>::quiet_NaN();
    const std::vector<int64_t> where = {3, 39, 0, 7, 8, 9, 22, 21, 1};
    std::vector<float> k_pool(slots * heads * dim, 7.0f), v_pool(slots * heads * dim_v, 7.0f);
    std::vector<std::byte> k_bytes(k_pool.size() * size_of(dtype)), v_bytes(v_pool.size() * size_of(dtype));
    convert_from_float(k_pool.data(), dtype, k_pool.size(), k_bytes.data());
    convert_from_float(v_pool.data(), dtype, v_pool.size(), v_bytes.data());
    run_kv_store({.k = k.data(),
                  .k_row_stride = k_stride,
                  .v = v.data(),
                  .v_row_stride = v_stride,
                  .num_tokens = tokens,
                  .num_kv_heads = heads,
                  .head_dim = dim,
                  .head_dim_v = dim_v,
                  .slots = where.data(),
                  .k_pool = k_bytes.data(),
                  .v_pool = v_bytes.data(),
                  .dtype = dtype},
                 stream_);
    for (int t = 0; t < tokens; ++t) {
      std::copy_n(k.begin() + t * k_stride, heads * dim, k_pool.begin() + where[t] * heads * dim);
      std::copy_n(v.begin() + t * v_stride, heads * dim_v, v_pool.begin() + where[t] * heads * dim_v);
    }
    std::vector<std::byte> k_expected(k_bytes.size()), v_expected(v_bytes.size());
    convert_from_float(k_pool.data(), dtype, k_pool.size(), k_expected.data());
    convert_from_float(v_pool.data(), dtype, v_pool.size(), v_expected.data());
    EXPECT_EQ(k_bytes, k_expected) << dtype;
    EXPECT_EQ(v_bytes, v_expected) << dtype;
  }
}

TEST_P(ElementwiseTest, EmbeddingLooksRowsUp) {
  const int64_t rows = 150, cols = 37;
  const std::vector<float> table = random_floats(rows * cols);
  const MatrixSlice slice{table.data(), DType::kF32, rows};
  const WeightMatrix weight({slice}, cols);
  const std::vector<int32_t> ids = {0, 149, 63, 64, 0};
  std::vector<float> out(ids.size() * cols);
  run_embedding({.ids = ids.data(), .num_tokens = 5, .table = &weight, .out = out.data(), .out_row_stride = cols},
                stream_);
  for (size_t t = 0; t < ids.size(); ++t) {
    for (int64_t c = 0; c < cols; ++c) ASSERT_EQ(out[t * cols + c], table[ids[t] * cols + c]);
  }
}

}  // namespace
}  // namespace onepass
