#include "kernels/cuda/linear_plans.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

namespace onepass {
namespace {

class LinearPlansTest : public testing::Test {
 protected:
  ~LinearPlansTest() override { std::filesystem::remove_all(dir_); }
  void SetUp() override { std::filesystem::create_directories(dir_); }
  void write(const std::string& text) const { std::ofstream(path_) << text; }

  // Tests run side by side, a process each.
  const std::string dir_ = testing::TempDir() + "onepass_linear_plans_test_" + std::to_string(::getpid());
  const std::string path_ = dir_ + "/plans.json";
  const LinearMachine machine_{.gpu = "NVIDIA H100", .driver_version = 13000, .cublaslt_version = 130001};
  const LinearPlans plans_ = {
      {{.rows = 4096, .cols = 1024, .num_rows = 1, .x_row_stride = 1024, .y_row_stride = 4096, .has_bias = true},
       {.kernel = LinearPlan::Kernel::kStream,
        .stream = {.tile_rows = 8, .x_tiles = 2, .cluster = 4, .blocks_per_sm = 2}}},
      {{.rows = 4096,
        .cols = 1024,
        .num_rows = 1,
        .x_row_stride = 1024,
        .y_row_stride = 2048,
        .has_norm = true,
        .gated = true},
       {.kernel = LinearPlan::Kernel::kStream, .stream = {.norm_inside = true}}},
      {{.rows = 6144, .cols = 4096, .num_rows = 64, .x_row_stride = 4096, .y_row_stride = 6144},
       {.kernel = LinearPlan::Kernel::kHopper, .hopper = {.tile_rows = 48, .cluster = 4}}},
      {{.y_dtype = DType::kF32, .rows = 8, .cols = 8, .num_rows = 96, .x_row_stride = 8, .y_row_stride = 8},
       {.algorithm = {1, 0xffffffffffffffffu, 3, 4, 5, 6, 7, 8}}}};
};

TEST_F(LinearPlansTest, ReadsWhatItWrote) {
  EXPECT_TRUE(read_linear_plans(path_, machine_).empty());
  ASSERT_TRUE(write_linear_plans(path_, machine_, plans_).ok());
  EXPECT_EQ(read_linear_plans(path_, machine_), plans_);
  // Nothing else is left in the folder.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_), {}), 1);
}

TEST_F(LinearPlansTest, IsForOneMachine) {
  ASSERT_TRUE(write_linear_plans(path_, machine_, plans_).ok());
  LinearMachine other = machine_;
  other.gpu = "NVIDIA L4";
  EXPECT_TRUE(read_linear_plans(path_, other).empty());
  other = machine_;
  other.driver_version += 10;
  EXPECT_TRUE(read_linear_plans(path_, other).empty());
  other = machine_;
  other.cublaslt_version += 1;
  EXPECT_TRUE(read_linear_plans(path_, other).empty());
}

TEST_F(LinearPlansTest, TakesNothingFromABrokenFile) {
  ASSERT_TRUE(write_linear_plans(path_, machine_, plans_).ok());
  std::ifstream in(path_);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  for (size_t length = 0; length + 2 < text.size(); length += 7) {
    write(text.substr(0, length));
    EXPECT_TRUE(read_linear_plans(path_, machine_).empty()) << "cut to " << length;
  }
  const std::pair<std::string, std::string> changes[] = {{"4096", "-4096"},
                                                         {"4096", "\"4096\""},
                                                         {"\"shape\"", "\"form\""},
                                                         {"bfloat16", "b16"},
                                                         {"true", "1"},
                                                         {"false", "0"},
                                                         {"\"plans\"", "\"plan\""},
                                                         {"\"stream\"", "\"flow\""},
                                                         {"\"hopper\": [", "\"hopper\": [47, "},
                                                         {"\"hopper\"", "\"volta\""}};
  for (const auto& [from, to] : changes) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    write(changed);
    EXPECT_TRUE(read_linear_plans(path_, machine_).empty()) << from << " as " << to;
  }
  // A folder in its place: neither read nor replaced.
  std::filesystem::remove(path_);
  std::filesystem::create_directories(path_ + "/inner");
  EXPECT_TRUE(read_linear_plans(path_, machine_).empty());
  EXPECT_FALSE(write_linear_plans(path_, machine_, plans_).ok());
}

TEST(PlannedNumRows, IsTheNextOfAFew) {
  int64_t last = 0;
  for (int64_t n = 1; n <= 5000; ++n) {
    const int64_t planned = planned_num_rows(n);
    ASSERT_GE(planned, n);
    ASSERT_LE(planned, 2 * n);
    ASSERT_GE(planned, last);
    ASSERT_EQ(planned_num_rows(planned), planned);
    last = planned;
  }
  EXPECT_EQ(planned_num_rows(3), 4);
  EXPECT_EQ(planned_num_rows(17), 24);
  EXPECT_EQ(planned_num_rows(25), 32);
  EXPECT_EQ(planned_num_rows(33), 48);
}

TEST(HopperLinearPlan, SharesRowsOutEvenly) {
  const GpuInfo h100{.compute_capability = 90, .multiprocessors = 132};
  const auto first = [&](int64_t y_cols, bool gated) { return hopper_linear_plans(y_cols, gated, 64, h100).at(0); };
  // 128 tiles each, of Llama-3.1-8B's layers.
  EXPECT_EQ(first(6144, false).tile_rows, 48);
  EXPECT_EQ(first(4096, false).tile_rows, 32);
  EXPECT_EQ(first(14336, true).tile_rows, 224);
  for (const int64_t y_cols : {1, 1000, 128256}) {
    for (int64_t num_rows = 1; num_rows < 200; ++num_rows) {
      const auto plans = hopper_linear_plans(y_cols, false, num_rows, h100);
      EXPECT_EQ(plans.empty(), num_rows < 9 || num_rows > 128) << num_rows << " rows";
      for (const HopperLinearPlan& plan : plans) EXPECT_TRUE(is_valid(plan)) << to_string(plan);
    }
  }
  GpuInfo other = h100;
  other.compute_capability = 100;
  EXPECT_TRUE(hopper_linear_plans(4096, false, 64, other).empty());
}

TEST(StreamLinearPlan, FitsAndIsOfOneKindForAllBatches) {
  const GpuInfo h100{.compute_capability = 90, .multiprocessors = 132, .shared_memory_bytes = 232448};
  for (const int64_t cols : {8, 1024, 4096, 14336, 28672, 53248}) {
    const auto one = batch_invariant_plan(cols, 1, true, h100);
    ASSERT_TRUE(one.ok()) << one.status();
    for (int64_t num_rows = 1; num_rows < 70; ++num_rows) {
      const auto plan = batch_invariant_plan(cols, num_rows, true, h100);
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_EQ(plan->cluster, one->cluster);
      EXPECT_TRUE(!plan->norm_inside || stream_linear_can_norm(cols, *plan));
      EXPECT_LE(stream_linear_shared_bytes(cols, num_rows, *plan), h100.shared_memory_bytes);
      for (const StreamLinearPlan& tried : stream_linear_plans(cols, num_rows, true, h100)) {
        EXPECT_TRUE(is_valid(tried));
        EXPECT_TRUE(!tried.norm_inside || stream_linear_can_norm(cols, tried));
        EXPECT_LE(stream_linear_shared_bytes(cols, num_rows, tried), h100.shared_memory_bytes);
      }
    }
  }
  const auto one_row = stream_linear_plans(4096, 1, true, h100);
  EXPECT_TRUE(std::any_of(one_row.begin(), one_row.end(), [](const auto& plan) { return plan.norm_inside; }));
  EXPECT_FALSE(stream_linear_plans(4096, 1, false, h100).front().norm_inside);
  EXPECT_FALSE(batch_invariant_plan(1 << 20, 1, false, h100).ok());
  EXPECT_FALSE(stream_linear_plans(14336, 1, false, h100).empty());
  EXPECT_TRUE(stream_linear_plans(4096, 33, true, h100).empty());
}

}  // namespace
}  // namespace onepass
