// What the tests of this folder's kernels share: random numbers, and their way to the GPU and back.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <initializer_list>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "tensor/cuda/cuda_buffer.h"
#include "tensor/cuda/cuda_stream.h"
#include "tensor/cuda_info.h"
#include "tensor/dtype.h"

namespace onepass {

// Skips where there is no GPU.
class CudaKernelTest : public testing::Test {
 protected:
  void SetUp() override {
    const CudaInfo cuda = query_cuda();
    if (!cuda.problem.empty()) GTEST_SKIP() << "no GPU to test on: " << cuda.problem;
    gpu_ = cuda.gpus.front();
    StatusOr<CudaStream> stream = CudaStream::create();
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = std::make_unique<CudaStream>(std::move(*stream));
  }

  // Numbers that `dtype` represents exactly.
  std::vector<float> random_values(int64_t count, DType dtype) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) {
      store_float(&value, dtype, 0, normal(rng_));
      value = load_float(&value, dtype, 0);
    }
    return values;
  }
  template <typename T>
  static CudaBuffer upload(const std::vector<T>& values) {
    return CudaBuffer::copy_of(std::as_bytes(std::span(values))).value();
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
  // Equal but for the last digit that `dtype` keeps.
  static void expect_near(const std::vector<float>& found, const std::vector<float>& expected, DType dtype) {
    const double digit = dtype == DType::kF32 ? 2e-6 : dtype == DType::kF16 ? 1.0 / 1024 : 1.0 / 128;
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      ASSERT_NEAR(found[i], expected[i], 4e-6 + digit * std::abs(expected[i])) << "element " << i;
    }
  }

  template <typename T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[rng_() % values.size()];
  }

  std::mt19937_64 rng_{3};
  GpuInfo gpu_;
  std::unique_ptr<CudaStream> stream_;
};

}  // namespace onepass
