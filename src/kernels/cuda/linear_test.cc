// Dense layers on a GPU against sums in float64.
#include "kernels/cuda/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <vector>

#include "kernels/cuda/cuda_kernel_test.h"
#include "kernels/cuda/hopper_linear.h"
#include "kernels/cuda/stream_linear.h"
#include "tensor/cuda/cuda_copy.h"

namespace onepass {
namespace {

// A random layer in the GPU's memory, and what y must become.
struct Problem {
  CudaLinearParams params;
  CudaBuffer x, weight, bias, y;
  std::vector<double> expected;  // [num_rows, y_row_stride]; NaN where nothing may be written
  std::vector<double> error;
  std::vector<float> before;
};

class LinearCudaTest : public CudaKernelTest {
 protected:
  StatusOr<std::unique_ptr<CudaLinear>> make(const CudaLinear::Options& options = {}) {
    return CudaLinear::create(gpu_, options);
  }

  Problem random_problem(int64_t rows, int64_t cols, int64_t num_rows) {
    Problem p;
    const DType dtype = one_of({DType::kF16, DType::kBF16}), y_dtype = rng_() % 2 == 0 ? DType::kF32 : dtype;
    const int64_t x_stride = cols + 8 * static_cast<int64_t>(rng_() % 3);
    const int64_t y_stride = (rows + 7) / 8 * 8 + 8 * static_cast<int64_t>(rng_() % 3);
    const bool has_bias = rng_() % 2 == 0, accumulate = rng_() % 2 == 0;
    const std::vector<float> x = random_values(num_rows * x_stride, dtype), weight = random_values(rows * cols, dtype);
    const std::vector<float> bias = random_values(rows, dtype);
    p.before = random_values(num_rows * y_stride, y_dtype);
    // NaN where nothing may be read.
    std::vector<float> padded = x;
    for (int64_t n = 0; n < num_rows; ++n) {
      for (int64_t c = cols; c < x_stride; ++c) padded[n * x_stride + c] = NAN;
    }
    p.x = upload(padded, dtype), p.weight = upload(weight, dtype), p.bias = upload(bias),
    p.y = upload(p.before, y_dtype);
    p.params = {.dtype = dtype,
                .x = p.x.data(),
                .x_row_stride = x_stride,
                .num_rows = num_rows,
                .weight = p.weight.data(),
                .rows = rows,
                .cols = cols,
                .bias = has_bias ? p.bias.as<float>() : nullptr,
                .y = p.y.data(),
                .y_dtype = y_dtype,
                .y_row_stride = y_stride,
                .accumulate = accumulate};
    // One rounding of the result; the sum's own error by the size of what is added up.
    const double digit = y_dtype == DType::kF32 ? 0x1p-23 : y_dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
    p.expected.assign(num_rows * y_stride, NAN);
    p.error.assign(num_rows * y_stride, 0.0);
    for (int64_t n = 0; n < num_rows; ++n) {
      for (int64_t r = 0; r < rows; ++r) {
        double sum = 0.0, size = 0.0;
        for (int64_t c = 0; c < cols; ++c) {
          const double product = double{x[n * x_stride + c]} * weight[r * cols + c];
          sum += product, size += std::abs(product);
        }
        const int64_t at = n * y_stride + r;
        if (has_bias) sum += bias[r], size += std::abs(bias[r]);
        // cuBLASLt may round what it adds to y before it adds it.
        const double rounded = std::abs(sum);
        if (accumulate) sum += p.before[at], size += std::abs(p.before[at]);
        p.expected[at] = sum;
        p.error[at] = 0x1p-18 * size + digit * (std::abs(sum) + (accumulate ? rounded : 0.0)) + 1e-7;
      }
    }
    return p;
  }

  void expect_correct(const Problem& p, const Status& status) {
    ASSERT_TRUE(status.ok()) << status;
    const Status done = stream_->synchronize();
    ASSERT_TRUE(done.ok()) << done;
    const std::vector<float> y = download(p.y, p.params.y_dtype, static_cast<int64_t>(p.expected.size()));
    for (size_t i = 0; i < y.size(); ++i) {
      if (std::isnan(p.expected[i])) {
        ASSERT_EQ(y[i], p.before[i]) << "element " << i << " beyond a row";
      } else {
        ASSERT_NEAR(y[i], p.expected[i], p.error[i]) << "row " << static_cast<int64_t>(i) / p.params.y_row_stride
                                                     << ", column " << static_cast<int64_t>(i) % p.params.y_row_stride;
      }
    }
  }

  static testing::Message words(const Problem& p) {
    return testing::Message() << p.params.dtype << " to " << p.params.y_dtype << ", " << p.params.num_rows << " x "
                              << p.params.cols << " by " << p.params.rows << (p.params.bias != nullptr ? ", bias" : "")
                              << (p.params.accumulate ? ", added" : "");
  }

  int64_t random_num_rows() { return one_of<int64_t>({0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 128}); }
  int64_t random_rows() { return one_of<int64_t>({1, 3, 8, 15, 16, 21, 64, 100, 256, 1000, 2200}); }
  int64_t random_cols() { return one_of<int64_t>({8, 24, 64, 72, 200, 512, 520, 1024, 3000}); }
};

TEST_F(LinearCudaTest, AgreesWithFloat64) {
  const auto linear = make();
  ASSERT_TRUE(linear.ok()) << linear.status();
  for (int round = 0; round < 80; ++round) {
    const Problem p = random_problem(random_rows(), random_cols(), random_num_rows());
    const Status prepared = round % 2 == 0 ? (*linear)->prepare(p.params) : ok_status();
    ASSERT_TRUE(prepared.ok()) << prepared;
    const Status status = (*linear)->run(p.params, stream_->get());
    SCOPED_TRACE(words(p) << ", " << (*linear)->describe(p.params));
    expect_correct(p, status);
    if (HasFatalFailure()) return;
  }
}

// Every plan of our own kernel, those that no shape here would get too.
TEST_F(LinearCudaTest, EveryStreamPlanAgreesWithFloat64) {
  for (int round = 0; round < 150; ++round) {
    const Problem p = random_problem(random_rows(), random_cols(), random_num_rows());
    if (p.params.num_rows == 0) continue;
    const StreamLinearPlan plan{.tile_rows = one_of({8, 16}),
                                .x_tiles = one_of({1, 2, 4}),
                                .cluster = one_of({1, 2, 4, 8}),
                                .blocks_per_sm = one_of({1, 2})};
    if (stream_linear_shared_bytes(p.params.cols, p.params.num_rows, plan) > gpu_.shared_memory_bytes) continue;
    if (plan.cluster > 1 && gpu_.compute_capability < 90) continue;
    SCOPED_TRACE(words(p) << ", tile_rows " << plan.tile_rows << ", x_tiles " << plan.x_tiles << ", cluster "
                          << plan.cluster << ", blocks_per_sm " << plan.blocks_per_sm);
    expect_correct(p, run_stream_linear(p.params, plan, gpu_, stream_->get()));
    if (HasFatalFailure()) return;
  }
}

// The same of the kernel for Hopper, which other GPUs are refused.
TEST_F(LinearCudaTest, EveryHopperPlanAgreesWithFloat64) {
  for (int round = 0; round < 150; ++round) {
    const int64_t num_rows = one_of<int64_t>({1, 8, 9, 16, 17, 33, 63, 64, 65, 100, 127, 128});
    // Several tiles for each block too: 132 blocks of 32 rows are 4,224.
    const bool is_long = round % 10 == 9;
    const Problem p = random_problem(is_long ? one_of<int64_t>({9000, 20001}) : random_rows(),
                                     is_long ? one_of<int64_t>({64, 136}) : random_cols(), num_rows);
    const HopperLinearPlan plan{.tile_rows = one_of({32, 48, 64, 96, 128, 192, 224}), .cluster = one_of({1, 2, 4})};
    SCOPED_TRACE(words(p) << ", " << to_string(plan));
    const Status status = run_hopper_linear(p.params, plan, gpu_, stream_->get());
    if (gpu_.compute_capability != 90) {
      ASSERT_TRUE(absl::IsUnimplemented(status)) << status;
      continue;
    }
    expect_correct(p, status);
    if (HasFatalFailure()) return;
  }
}

TEST_F(LinearCudaTest, HopperPlansNameWhatTheyDoNotTake) {
  Problem p = random_problem(64, 64, 129);
  const Status status = run_hopper_linear(p.params, {.tile_rows = 64}, gpu_, stream_->get());
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
  EXPECT_NE(status.message().find("129"), absl::string_view::npos) << status;
}

// The shapes at which x no longer fits at once, and those with several tiles for each block.
TEST_F(LinearCudaTest, LargeShapes) {
  const auto linear = make(), invariant = make({.batch_invariant = true});
  ASSERT_TRUE(linear.ok()) << linear.status();
  ASSERT_TRUE(invariant.ok()) << invariant.status();
  for (const auto& [rows, cols, num_rows] :
       {std::tuple{320, 14336, 16}, std::tuple{64, 28672, 9}, std::tuple{9000, 256, 3}, std::tuple{20000, 64, 31}}) {
    for (const auto* which : {&linear, &invariant}) {
      const Problem p = random_problem(rows, cols, num_rows);
      const Status status = (**which)->run(p.params, stream_->get());
      SCOPED_TRACE(words(p) << ", " << (**which)->describe(p.params));
      expect_correct(p, status);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(LinearCudaTest, BatchInvariantRowsDoNotDependOnTheirNumber) {
  const auto linear = make({.batch_invariant = true});
  ASSERT_TRUE(linear.ok()) << linear.status();
  for (int round = 0; round < 20; ++round) {
    const Problem p = random_problem(random_rows(), one_of<int64_t>({8, 200, 1024, 3000, 14336}), 70);
    SCOPED_TRACE(words(p));
    expect_correct(p, (*linear)->run(p.params, stream_->get()));
    if (HasFatalFailure()) return;
    const std::vector<float> all = download(p.y, p.params.y_dtype, static_cast<int64_t>(p.before.size()));
    for (const int64_t num_rows : {1, 2, 7, 8, 9, 16, 17, 33}) {
      const auto first = static_cast<int64_t>(rng_() % (71 - num_rows));
      const CudaBuffer y = upload(p.before, p.params.y_dtype);
      const auto at = [&](const CudaBuffer& buffer, DType dtype, int64_t stride) {
        return static_cast<void*>(buffer.as<std::byte>() + first * stride * static_cast<int64_t>(size_of(dtype)));
      };
      CudaLinearParams part = p.params;
      part.x = at(p.x, part.dtype, part.x_row_stride);
      part.y = at(y, part.y_dtype, part.y_row_stride);
      part.num_rows = num_rows;
      const Status status = (*linear)->run(part, stream_->get());
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(stream_->synchronize().ok());
      const std::vector<float> found = download(y, part.y_dtype, static_cast<int64_t>(p.before.size()));
      for (int64_t n = 0; n < num_rows; ++n) {
        for (int64_t r = 0; r < part.rows; ++r) {
          const int64_t i = (first + n) * part.y_row_stride + r;
          ASSERT_EQ(found[i], all[i]) << "row " << first + n << " of " << num_rows << ", column " << r;
        }
      }
    }
  }
}

TEST_F(LinearCudaTest, RunsInAGraph) {
  const auto linear = make();
  ASSERT_TRUE(linear.ok()) << linear.status();
  for (const int64_t num_rows : {1, 8, 64}) {
    Problem p = random_problem(512, 1024, num_rows);
    SCOPED_TRACE(words(p));
    const auto capture = [&] {
      return CudaGraph::capture(*stream_, [&] { return (*linear)->run(p.params, stream_->get()); });
    };
    const auto unprepared = capture();
    ASSERT_FALSE(unprepared.ok());
    EXPECT_NE(unprepared.status().message().find("expected to be prepared"), absl::string_view::npos)
        << unprepared.status();
    const Status prepared = (*linear)->prepare(p.params);
    ASSERT_TRUE(prepared.ok()) << prepared;
    const auto graph = capture();
    ASSERT_TRUE(graph.ok()) << graph.status();
    expect_correct(p, graph->launch(*stream_));
    if (HasFatalFailure()) return;
  }
}

// Each layer reads what the one before it wrote, while its blocks begin early.
TEST_F(LinearCudaTest, WaitsForTheLayerBefore) {
  constexpr int64_t kWide = 4096;
  constexpr int kLayers = 24;
  // Each row of the weights takes one column of x to another place.
  std::vector<float> weight(kWide * kWide), x(kWide);
  for (int64_t r = 0; r < kWide; ++r) weight[r * kWide + (r * 5 + 3) % kWide] = 1.0f;
  for (int64_t c = 0; c < kWide; ++c) x[c] = static_cast<float>(c % 256);
  const CudaBuffer weight_device = upload(weight, DType::kBF16);
  std::vector<CudaBuffer> states;
  for (int i = 0; i <= kLayers; ++i) states.push_back(upload(i == 0 ? x : std::vector<float>(kWide), DType::kBF16));
  const auto layers = [&]() -> Status {
    for (int i = 0; i < kLayers; ++i) {
      const CudaLinearParams params{.x = states[i].data(),
                                    .x_row_stride = kWide,
                                    .num_rows = 1,
                                    .weight = weight_device.data(),
                                    .rows = kWide,
                                    .cols = kWide,
                                    .y = states[i + 1].data(),
                                    .y_row_stride = kWide};
      if (gpu_.compute_capability == 90 && i % 3 == 2) {
        ONEPASS_RETURN_IF_ERROR(
            run_hopper_linear(params, {.tile_rows = 32 + i % 2 * 32, .cluster = 1 << i / 3 % 3}, gpu_, stream_->get()));
        continue;
      }
      ONEPASS_RETURN_IF_ERROR(run_stream_linear(
          params, {.tile_rows = i % 2 == 0 ? 16 : 8, .blocks_per_sm = 1 + i / 2 % 2}, gpu_, stream_->get()));
    }
    return ok_status();
  };
  const auto graph = CudaGraph::capture(*stream_, layers);
  ASSERT_TRUE(graph.ok()) << graph.status();
  for (int i = 0; i < kLayers; ++i) {
    std::vector<float> moved(kWide);
    for (int64_t r = 0; r < kWide; ++r) moved[r] = x[(r * 5 + 3) % kWide];
    x.swap(moved);
  }
  for (int round = 0; round < 10; ++round) {
    for (int i = 1; i <= kLayers; ++i) ASSERT_TRUE(states[i].fill(0).ok());
    const Status status = round % 2 == 0 ? graph->launch(*stream_) : layers();
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(stream_->synchronize().ok());
    ASSERT_EQ(download(states[kLayers], DType::kBF16, kWide), x) << "round " << round;
  }
}

TEST_F(LinearCudaTest, KeepsItsPlans) {
  const std::string path = testing::TempDir() + "onepass_linear_test_plans.json";
  std::filesystem::remove(path);
  Problem p = random_problem(256, 512, 128);
  std::vector<std::byte> y_before(p.y.size());
  ASSERT_TRUE(p.y.download(y_before).ok());
  const auto written = [&] {
    std::ifstream in(path);
    return std::string((std::istreambuf_iterator<char>(in)), {});
  };
  std::string first;
  for (int round = 0; round < 3; ++round) {
    if (round == 2) std::ofstream(path) << "{\"broken\": ";
    const auto linear = make({.plan_file = path});
    ASSERT_TRUE(linear.ok()) << linear.status();
    // The second finds the plan in the file and leaves it alone; the third writes a good one.
    EXPECT_EQ((*linear)->describe(p.params) == "none", round != 1);
    const Status prepared = (*linear)->prepare(p.params);
    ASSERT_TRUE(prepared.ok()) << prepared;
    ASSERT_TRUE(p.y.upload(y_before).ok());
    expect_correct(p, (*linear)->run(p.params, stream_->get()));
    if (HasFatalFailure()) return;
    EXPECT_NE(written().find("\"plans\""), std::string::npos);
    if (round == 0) {
      first = written();
    } else if (round == 1) {
      EXPECT_EQ(written(), first);
    }
  }
  std::filesystem::remove(path);
}

TEST_F(LinearCudaTest, PlansAllNumbersOfRowsAtOnce) {
  const std::string path = testing::TempDir() + "onepass_linear_test_all_plans.json";
  std::filesystem::remove(path);
  const Problem p = random_problem(264, 520, 100);
  for (int round = 0; round < 2; ++round) {  // the second finds them in the file
    const auto linear = make({.plan_file = path});
    ASSERT_TRUE(linear.ok()) << linear.status();
    if (round == 0) {
      ASSERT_TRUE((*linear)->prepare_up_to(p.params).ok());
    }
    CudaLinearParams few = p.params;
    for (few.num_rows = 1; few.num_rows <= p.params.num_rows; ++few.num_rows) {
      ASSERT_NE((*linear)->describe(few), "none") << few.num_rows << " rows";
    }
    if (round == 0) expect_correct(p, (*linear)->run(p.params, stream_->get()));
  }
  std::filesystem::remove(path);
}

// Where memory is short, few rows are timed all the same; what is guessed for many is not kept.
TEST_F(LinearCudaTest, PlansWithLittleMemory) {
  const std::string path = testing::TempDir() + "onepass_linear_test_no_plans.json";
  std::filesystem::remove(path);
  const auto linear = make({.plan_file = path});
  ASSERT_TRUE(linear.ok()) << linear.status();
  const auto memory = cuda_memory();
  ASSERT_TRUE(memory.ok()) << memory.status();
  constexpr size_t kLeft = size_t{768} << 20;  // x of 2^20 rows alone is as large
  const auto hog = CudaBuffer::allocate(memory->free - kLeft);
  if (!hog.ok()) GTEST_SKIP() << "another program takes memory: " << hog.status();
  CudaLinearParams params{.x_row_stride = 384, .num_rows = 1 << 20, .rows = 64, .cols = 384, .y_row_stride = 64};
  const Status prepared = (*linear)->prepare_up_to(params);
  ASSERT_TRUE(prepared.ok()) << prepared;
  for (const int64_t num_rows : {1, 100, 1 << 20}) {
    params.num_rows = num_rows;
    EXPECT_NE((*linear)->describe(params), "none") << num_rows << " rows";
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(LinearCudaTest, NamesWhatIsWrong) {
  const auto linear = make({.batch_invariant = true});
  ASSERT_TRUE(linear.ok()) << linear.status();
  CudaLinearParams p{.x_row_stride = 16, .num_rows = 1, .rows = 8, .cols = 16, .y_row_stride = 8};
  const auto message = [&] { return std::string((*linear)->run(p, stream_->get()).message()); };
  EXPECT_EQ(message(), "linear: x, weight and y: expected addresses that are multiples of 16, found 0");
  p.cols = 21;
  EXPECT_EQ(message(), "linear: cols: expected a multiple of 8 from 8 to 2147483640, found 21");
  p.cols = 16;
  p.y_row_stride = 9;
  EXPECT_EQ(message(), "linear: y_row_stride: expected a multiple of 8 from rows = 8 on, found 9");
  p.y_row_stride = 8;
  p.y_dtype = DType::kF16;
  EXPECT_EQ(message(), "linear: y_dtype: expected float32 or bfloat16, found float16");
  p.dtype = DType::kF32;
  EXPECT_EQ(message(), "linear: dtype: expected float16 or bfloat16, found float32");
}

}  // namespace
}  // namespace onepass
