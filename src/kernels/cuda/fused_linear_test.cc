// Dense layers with the norm before and the gated activation behind them, against the three steps apart.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/cuda/cuda_kernel_test.h"
#include "kernels/cuda/hopper_linear.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/silu_and_mul.h"
#include "kernels/cuda/stream_linear.h"

namespace onepass {
namespace {

// A random norm, product and activation, each present or not, in the GPU's memory.
struct FusedProblem {
  CudaLinearParams params;
  CudaBuffer x, norm, weight, bias, y, normed, products;
};

class FusedLinearCudaTest : public CudaKernelTest {
 protected:
  StatusOr<std::unique_ptr<CudaLinear>> make(const CudaLinear::Options& options = {}) {
    return CudaLinear::create(gpu_, options);
  }

  FusedProblem random_fused(int64_t cols, int64_t num_rows, bool has_norm, bool gated) {
    FusedProblem p;
    const DType dtype = one_of({DType::kF16, DType::kBF16});
    const DType y_dtype = !gated && rng_() % 2 == 0 ? DType::kF32 : dtype;
    const int64_t rows = gated ? one_of<int64_t>({16, 48, 272, 2000}) : one_of<int64_t>({8, 21, 304, 2000});
    const int64_t y_cols = gated ? rows / 2 : rows, y_stride = (y_cols + 7) / 8 * 8 + 8 * int64_t(rng_() % 2);
    const int64_t x_stride = cols + 8 * static_cast<int64_t>(rng_() % 2);
    p.x = upload(random_values(num_rows * x_stride, DType::kF32), has_norm ? DType::kF32 : dtype);
    p.norm = upload(random_values(cols, DType::kF32));
    std::vector<float> weight = random_values(rows * cols, dtype);
    // So that gates are not all closed or wide open.
    for (float& w : weight) w *= 0x1p-5f;
    p.weight = upload(weight, dtype);
    p.bias = upload(random_values(rows, dtype));
    p.y = upload(random_values(num_rows * y_stride, y_dtype), y_dtype);
    p.normed = CudaBuffer::allocate_zeroed(num_rows * cols * size_of(dtype)).value();
    p.products = CudaBuffer::allocate_zeroed(num_rows * rows * size_of(dtype)).value();
    p.params = {.dtype = dtype,
                .x = p.x.data(),
                .x_row_stride = x_stride,
                .num_rows = num_rows,
                .weight = p.weight.data(),
                .rows = rows,
                .cols = cols,
                .bias = rng_() % 2 == 0 ? p.bias.as<float>() : nullptr,
                .y = p.y.data(),
                .y_dtype = y_dtype,
                .y_row_stride = y_stride,
                .accumulate = !gated && rng_() % 2 == 0,
                .norm = has_norm ? p.norm.as<float>() : nullptr,
                .norm_eps = 1e-6f,
                .normed = p.normed.data(),
                .gated = gated,
                .products = p.products.data()};
    return p;
  }

  // The norm, the product by one of our own kernels and the activation, one after the other.
  template <typename Product>
  Status run_apart(const CudaLinearParams& params, const Product& product) {
    CudaLinearParams p = params;
    if (p.norm != nullptr) {
      ONEPASS_RETURN_IF_ERROR(run_rms_norm_cuda({.x = p.x,
                                                 .x_dtype = DType::kF32,
                                                 .x_row_stride = p.x_row_stride,
                                                 .weight = p.norm,
                                                 .eps = p.norm_eps,
                                                 .out = p.normed,
                                                 .out_dtype = p.dtype,
                                                 .out_row_stride = p.cols,
                                                 .rows = p.num_rows,
                                                 .cols = p.cols},
                                                stream_->get()));
      p.x = p.normed, p.x_row_stride = p.cols, p.norm = nullptr;
    }
    if (p.gated) p.y = p.products, p.y_row_stride = p.rows, p.gated = false;
    ONEPASS_RETURN_IF_ERROR(product(p));
    if (!params.gated) return ok_status();
    return run_silu_and_mul_cuda({.dtype = p.dtype,
                                  .gate_up = p.y,
                                  .gate_up_row_stride = p.rows,
                                  .out = params.y,
                                  .out_row_stride = params.y_row_stride,
                                  .rows = p.num_rows,
                                  .cols = p.rows / 2},
                                 stream_->get());
  }

  // What `run` makes of y, which is then as before.
  template <typename Run>
  std::vector<float> result_of(FusedProblem& p, const Run& run) {
    std::vector<std::byte> before(p.y.size());
    EXPECT_TRUE(p.y.download(before).ok());
    const Status status = run();
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(stream_->synchronize().ok());
    std::vector<float> y = download(p.y, p.params.y_dtype, p.params.num_rows * p.params.y_row_stride);
    EXPECT_TRUE(p.y.upload(before).ok());
    return y;
  }

  static testing::Message fused_words(const FusedProblem& p) {
    return testing::Message() << p.params.dtype << " to " << p.params.y_dtype << ", " << p.params.num_rows << " x "
                              << p.params.cols << " by " << p.params.rows << (p.params.norm != nullptr ? ", norm" : "")
                              << (p.params.gated ? ", gated" : "") << (p.params.bias != nullptr ? ", bias" : "")
                              << (p.params.accumulate ? ", added" : "");
  }
};

// In one kernel and in three, bit for bit.
TEST_F(FusedLinearCudaTest, FusedIsSeparate) {
  for (int round = 0; round < 150; ++round) {
    const bool has_norm = rng_() % 3 != 0, gated = !has_norm || rng_() % 2 == 0;
    const int64_t cols = one_of<int64_t>({264, 512, 520, 1024, 2048, 4096, 5120, 8192});
    const int64_t num_rows = one_of<int64_t>({1, 2, 3, 5, 8, 9, 17});
    FusedProblem p = random_fused(cols, num_rows, has_norm, gated);
    const StreamLinearPlan plan{.tile_rows = one_of({8, 16}),
                                .x_tiles = has_norm ? 1 : one_of({1, 2, 4}),
                                .cluster = has_norm ? 1 : one_of({1, 2, 4, 8}),
                                .blocks_per_sm = one_of({1, 2})};
    if (stream_linear_shared_bytes(cols, num_rows, plan) > gpu_.shared_memory_bytes) continue;
    if (plan.cluster > 1 && gpu_.compute_capability < 90) continue;
    SCOPED_TRACE(fused_words(p) << ", " << to_string(plan));
    const auto product = [&](const CudaLinearParams& params) {
      return run_stream_linear(params, plan, gpu_, stream_->get());
    };
    const auto expected = result_of(p, [&] { return run_apart(p.params, product); });
    const auto found = result_of(p, [&] { return product(p.params); });
    ASSERT_EQ(found, expected);
    if (HasFailure()) return;
  }
}

// The kernel for Hopper, which other GPUs are refused, sums in one order whatever its plan.
TEST_F(FusedLinearCudaTest, FusedIsSeparateOnHopper) {
  for (int round = 0; round < 100; ++round) {
    FusedProblem p = random_fused(one_of<int64_t>({264, 512, 1024, 4096}), one_of<int64_t>({9, 17, 64, 65, 128}),
                                  /*has_norm=*/false, /*gated=*/true);
    const auto product = [&](const CudaLinearParams& params) {
      const HopperLinearPlan plan{.tile_rows = one_of({32, 48, 64, 96, 128, 192, 224}), .cluster = one_of({1, 2, 4})};
      return run_hopper_linear(params, plan, gpu_, stream_->get());
    };
    SCOPED_TRACE(fused_words(p));
    if (gpu_.compute_capability != 90) {
      ASSERT_TRUE(absl::IsUnimplemented(product(p.params)));
      continue;
    }
    const auto expected = result_of(p, [&] { return run_apart(p.params, product); });
    const auto found = result_of(p, [&] { return product(p.params); });
    ASSERT_EQ(found, expected);
    if (HasFailure()) return;
  }
}

// What CudaLinear chooses, for many rows and few, against plain float64.
TEST_F(FusedLinearCudaTest, AgreesWithFloat64) {
  const auto linear = make(), invariant = make({.batch_invariant = true});
  ASSERT_TRUE(linear.ok()) << linear.status();
  ASSERT_TRUE(invariant.ok()) << invariant.status();
  for (int round = 0; round < 40; ++round) {
    const bool has_norm = rng_() % 4 != 0, gated = !has_norm || rng_() % 2 == 0;
    const int64_t cols = one_of<int64_t>({64, 264, 512, 1024}),
                  num_rows = one_of<int64_t>({1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 128});
    FusedProblem p = random_fused(cols, num_rows, has_norm, gated);
    const CudaLinearParams& params = p.params;
    const auto& which = round % 2 == 0 ? linear : invariant;
    const std::vector<float> x = download(p.x, has_norm ? DType::kF32 : params.dtype, num_rows * params.x_row_stride);
    const std::vector<float> weight = download(p.weight, params.dtype, params.rows * cols);
    const std::vector<float> norm = download(p.norm, DType::kF32, cols),
                             bias = download(p.bias, DType::kF32, params.rows);
    const std::vector<float> before = download(p.y, params.y_dtype, num_rows * params.y_row_stride);
    const auto found = result_of(p, [&] { return (*which)->run(params, stream_->get()); });
    SCOPED_TRACE(fused_words(p) << ", " << (*which)->describe(params));
    const double digit = params.dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
    for (int64_t n = 0; n < num_rows; ++n) {
      double squares = 0.0;
      for (int64_t c = 0; c < cols; ++c)
        squares += double{x[n * params.x_row_stride + c]} * x[n * params.x_row_stride + c];
      const double factor = has_norm ? 1.0 / std::sqrt(squares / static_cast<double>(cols) + 1e-6) : 1.0;
      std::vector<double> product(params.rows), error(params.rows);
      for (int64_t r = 0; r < params.rows; ++r) {
        double sum = params.bias != nullptr ? bias[r] : 0.0, size = 0.0;
        for (int64_t c = 0; c < cols; ++c) {
          const double term =
              x[n * params.x_row_stride + c] * factor * (has_norm ? norm[c] : 1.0) * weight[r * cols + c];
          sum += term, size += term * term;
        }
        product[r] = sum;
        // x's own rounding, of random sign in each term, and the product's.
        error[r] = 8 * digit * std::sqrt(size) + 2 * digit * std::abs(sum) + 1e-6;
      }
      for (int64_t c = 0; c < params.y_cols(); ++c) {
        const int64_t at = n * params.y_row_stride + c;
        double expected = product[c], tolerance = error[c];
        if (gated) {
          const double gate = product[c], up = product[params.rows / 2 + c], open = gate / (1.0 + std::exp(-gate));
          expected = open * up;
          tolerance = 1.2 * error[c] * std::abs(up) + std::abs(open) * error[params.rows / 2 + c] +
                      1.2 * error[c] * error[params.rows / 2 + c] + 2 * digit * std::abs(expected);
        }
        if (params.accumulate)
          expected += before[at], tolerance += 2 * digit * (std::abs(expected) + std::abs(before[at]));
        ASSERT_NEAR(found[at], expected, tolerance) << "row " << n << ", column " << c;
      }
    }
    for (int64_t n = 0; n < num_rows; ++n) {
      for (int64_t c = params.y_cols(); c < params.y_row_stride; ++c) {
        ASSERT_EQ(found[n * params.y_row_stride + c], before[n * params.y_row_stride + c]) << "beyond row " << n;
      }
    }
  }
}

// A norm and an activation change with the plans for a number of rows, a token's bits do not.
TEST_F(FusedLinearCudaTest, BatchInvariantRowsDoNotDependOnTheirNumber) {
  const auto linear = make({.batch_invariant = true});
  ASSERT_TRUE(linear.ok()) << linear.status();
  for (int round = 0; round < 24; ++round) {
    FusedProblem p = random_fused(one_of<int64_t>({264, 1024, 4096, 16384}), 70, round % 4 != 0, round % 2 == 0);
    p.params.accumulate = false;
    const CudaLinearParams& all = p.params;
    SCOPED_TRACE(fused_words(p));
    const auto expected = result_of(p, [&] { return (*linear)->run(all, stream_->get()); });
    for (const int64_t num_rows : {1, 2, 3, 8, 9, 17, 33}) {
      const auto first = static_cast<int64_t>(rng_() % (71 - num_rows));
      const size_t x_size = all.norm != nullptr ? sizeof(float) : size_of(all.dtype);
      CudaLinearParams part = all;
      part.x = p.x.as<std::byte>() + first * all.x_row_stride * static_cast<int64_t>(x_size);
      part.num_rows = num_rows;
      const auto found = result_of(p, [&] { return (*linear)->run(part, stream_->get()); });
      for (int64_t n = 0; n < num_rows; ++n) {
        for (int64_t c = 0; c < all.y_cols(); ++c) {
          ASSERT_EQ(found[n * all.y_row_stride + c], expected[(first + n) * all.y_row_stride + c])
              << "row " << first + n << " of " << num_rows << ", column " << c;
        }
      }
    }
  }
}

}  // namespace
}  // namespace onepass
