// The GPU's merge against the host's.
#include "attention/cuda/merge.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "attention/cuda/testing/kernel_test.h"
#include "attention/reference/merge.h"

namespace onepass {
namespace {

constexpr float kEmpty = -std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// A stack of parts on the host: rows of `heads` heads of `dim` elements, rounded to a dtype.
struct HostStack {
  DType dtype = DType::kF32;
  int count = 0;
  int64_t row_stride = 0;
  std::vector<float> out;  // [count, rows, row_stride]
  std::vector<float> lse;  // [count, heads, rows]
};

class CudaMergeTest : public testing::Test {
 protected:
  void SetUp() override {
    const CudaInfo cuda = query_cuda();
    if (!cuda.problem.empty()) GTEST_SKIP() << "no GPU to test on: " << cuda.problem;
  }

  static CudaBuffer upload(const std::vector<float>& values, DType dtype) {
    std::vector<std::byte> bytes(values.size() * size_of(dtype));
    convert_from_float(values.data(), dtype, values.size(), bytes.data());
    return CudaBuffer::copy_of(bytes).value();
  }
  static std::vector<float> download(const CudaBuffer& buffer, DType dtype, int64_t count) {
    std::vector<std::byte> bytes(count * size_of(dtype));
    EXPECT_TRUE(buffer.download(bytes).ok());
    std::vector<float> values(count);
    convert_to_float(bytes.data(), dtype, count, values.data());
    return values;
  }

  HostStack random_stack(int count, int64_t rows, int heads, int dim, DType dtype) {
    std::normal_distribution<float> normal;
    HostStack stack{.dtype = dtype, .count = count, .row_stride = heads * dim + 4 * static_cast<int64_t>(rng_() % 3)};
    for (int64_t i = 0; i < count * rows * stack.row_stride; ++i) {
      float value = normal(rng_);
      store_float(&value, dtype, 0, value);
      stack.out.push_back(load_float(&value, dtype, 0));
    }
    for (int64_t i = 0; i < count * heads * rows; ++i) {
      const bool empty = rng_() % 3 == 0;
      stack.lse.push_back(empty ? kEmpty : 20.0f * normal(rng_));
      if (!empty) continue;
      const int64_t part = i / (heads * rows), head = i / rows % heads, row = i % rows;
      for (int d = 0; d < dim; ++d) stack.out[(part * rows + row) * stack.row_stride + head * dim + d] = kNaN;
    }
    return stack;
  }

  std::mt19937_64 rng_{11};
};

TEST_F(CudaMergeTest, AgreesWithTheReference) {
  constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  for (int round = 0; round < 60; ++round) {
    const int64_t rows = 1 + static_cast<int64_t>(rng_() % 40);
    const int heads = 1 + static_cast<int>(rng_() % 5), dim = 4 * (1 + static_cast<int>(rng_() % 40));
    const DType out_dtype = kDTypes[rng_() % 3];
    const int num_stacks = 1 + static_cast<int>(rng_() % 3);
    std::vector<HostStack> stacks;
    std::vector<CudaBuffer> memory;
    MergeParams params{.num_stacks = num_stacks,
                       .out_dtype = out_dtype,
                       .out_row_stride = heads * dim + 8,
                       .out_head_stride = dim,
                       .lse_head_stride = rows + 1,
                       .rows = rows,
                       .num_heads = heads,
                       .head_dim_v = dim};
    for (int s = 0; s < num_stacks; ++s) {
      stacks.push_back(random_stack(static_cast<int>(rng_() % 5), rows, heads, dim, kDTypes[rng_() % 3]));
      const HostStack& stack = stacks.back();
      memory.push_back(upload(stack.out, stack.dtype));
      memory.push_back(upload(stack.lse, DType::kF32));
      params.stacks[s] = {.out = memory[2 * s].data(),
                          .dtype = stack.dtype,
                          .part_stride = rows * stack.row_stride,
                          .row_stride = stack.row_stride,
                          .head_stride = dim,
                          .lse = memory[2 * s + 1].as<float>(),
                          .lse_part_stride = heads * rows,
                          .lse_head_stride = rows,
                          .count = stack.count};
    }
    const CudaBuffer out = upload(std::vector<float>(rows * params.out_row_stride, 7.0f), out_dtype);
    const CudaBuffer lse = upload(std::vector<float>(heads * params.lse_head_stride, 7.0f), DType::kF32);
    params.out = out.data();
    params.softmax_lse = lse.as<float>();
    const bool has_sinks = rng_() % 3 == 0;
    const std::vector<float> sinks(heads, 3.0f);
    const CudaBuffer device_sinks = upload(sinks, DType::kF32);
    if (has_sinks) params.sinks = device_sinks.as<float>();
    const int32_t existing = rng_() % 3 == 0 ? static_cast<int32_t>(rng_() % rows) : static_cast<int32_t>(rows);
    ASSERT_OK_AND_ASSIGN(const CudaBuffer device_existing, CudaBuffer::copy_of(std::as_bytes(std::span(&existing, 1))));
    if (existing < rows) params.existing_rows = device_existing.as<int32_t>();
    ASSERT_OK_AND_ASSIGN(const CudaStream stream, CudaStream::create());
    ASSERT_OK(merge_attention_parts(params, stream.get()));
    ASSERT_OK(stream.synchronize());
    const std::vector<float> out_found = download(out, out_dtype, rows * params.out_row_stride);
    const std::vector<float> lse_found = download(lse, DType::kF32, heads * params.lse_head_stride);

    const double rounding = out_dtype == DType::kF32 ? 1e-6 : out_dtype == DType::kF16 ? 5e-4 : 4e-3;
    for (int64_t i = existing * params.out_row_stride; i < std::ssize(out_found); ++i) ASSERT_EQ(out_found[i], 7.0f);
    const std::vector<float> nothing(dim, 0.0f);
    for (int64_t row = 0; row < existing; ++row) {
      for (int head = 0; head < heads; ++head) {
        std::vector<AttentionState> parts;
        for (const HostStack& stack : stacks) {
          for (int part = 0; part < stack.count; ++part) {
            parts.push_back({stack.out.data() + (part * rows + row) * stack.row_stride + head * dim,
                             stack.lse[(part * heads + head) * rows + row]});
          }
        }
        const auto is_empty = [](const AttentionState& part) { return part.lse == kEmpty; };
        const bool all_empty = std::all_of(parts.begin(), parts.end(), is_empty);
        // A sink is a part without values.
        if (has_sinks && !all_empty) parts.push_back({nothing.data(), sinks[head]});
        const bool exact = std::count_if(parts.begin(), parts.end(), is_empty) + 1 >= std::ssize(parts);
        std::vector<float> expected(dim);
        const float expected_lse = merge_attention_states(parts, expected);
        const float found_lse = lse_found[head * params.lse_head_stride + row];
        if (exact || expected_lse == kEmpty) {
          ASSERT_EQ(found_lse, expected_lse);
        } else {
          ASSERT_NEAR(found_lse, expected_lse, 1e-5 * (1.0 + std::abs(expected_lse)));
        }
        for (int d = 0; d < dim; ++d) {
          const float found = out_found[row * params.out_row_stride + head * dim + d];
          if (exact) {
            float rounded;
            store_float(&rounded, out_dtype, 0, expected[d]);
            ASSERT_EQ(found, load_float(&rounded, out_dtype, 0));
          } else {
            ASSERT_NEAR(found, expected[d], 3e-5 + rounding * std::abs(expected[d]));
          }
        }
      }
      for (int64_t i = heads * dim; i < params.out_row_stride; ++i) {
        ASSERT_EQ(out_found[row * params.out_row_stride + i], 7.0f) << "written between the rows";
      }
    }
  }
}

TEST(CudaMerge, NamesWhatIsWrong) {
  float number = 0.0f;
  MergeParams params{.num_stacks = 1, .out = &number, .rows = 1, .num_heads = 1, .head_dim_v = 6};
  EXPECT_EQ(merge_attention_parts(params, nullptr).message(), "merge: head_dim_v: expected a multiple of 4, found 6");
  params.head_dim_v = 4;
  params.stacks[0].count = 2;
  EXPECT_EQ(merge_attention_parts(params, nullptr).message(),
            "merge: stack 0: expected a count >= 0 and addresses, found count 2");
}

}  // namespace
}  // namespace onepass
