#include "kernels/cuda/step_inputs.h"

#include "kernels/cuda/cuda_kernel_test.h"

namespace onepass {
namespace {

class StepInputsTest : public CudaKernelTest {
 protected:
  static std::vector<int32_t> ints(const CudaBuffer& buffer, size_t count) {
    std::vector<int32_t> values(count);
    EXPECT_TRUE(buffer.download(std::as_writable_bytes(std::span(values))).ok());
    return values;
  }
};

TEST_F(StepInputsTest, RowsComeToTheirPlacesAndLeaveTheRest) {
  for (int i = 0; i < 30; ++i) {
    const int rows = 1 + static_cast<int>(rng_() % 70), stride = 1 + static_cast<int>(rng_() % 400);
    std::vector<int32_t> begin = {0}, packed, expected(static_cast<size_t>(rows) * stride, -7);
    for (int row = 0; row < rows; ++row) {
      const int count = static_cast<int>(rng_() % (stride + 1));
      for (int j = 0; j < count; ++j) {
        packed.push_back(static_cast<int32_t>(rng_() % 1000000));
        expected[static_cast<size_t>(row) * stride + j] = packed.back();
      }
      begin.push_back(static_cast<int32_t>(packed.size()));
    }
    packed.push_back(0);  // an empty buffer has no address
    const CudaBuffer table = upload(std::vector<int32_t>(expected.size(), -7));
    const CudaBuffer on_gpu = upload(packed), begins = upload(begin);
    ASSERT_TRUE(run_unpack_rows_cuda({.packed = static_cast<const int32_t*>(on_gpu.data()),
                                      .begin = static_cast<const int32_t*>(begins.data()),
                                      .num_rows = rows,
                                      .table = static_cast<int32_t*>(table.data()),
                                      .table_stride = stride},
                                     stream_->get())
                    .ok());
    ASSERT_TRUE(stream_->synchronize().ok());
    ASSERT_EQ(ints(table, expected.size()), expected);
  }
}

TEST_F(StepInputsTest, NegativeIdsStandForWhatASlotHasSampled) {
  const CudaBuffer sampled = upload(std::vector<int32_t>{100, 200, 300});
  std::vector<int32_t> ids(300, 7), expected = ids;
  for (size_t i = 0; i < ids.size(); i += 3) {
    ids[i] = ~static_cast<int32_t>(i % 2 + i / 150);
    expected[i] = 100 * static_cast<int32_t>(i % 2 + i / 150 + 1);
  }
  const CudaBuffer on_gpu = upload(ids);
  ASSERT_TRUE(run_resolve_tokens_cuda({.ids = static_cast<int32_t*>(on_gpu.data()),
                                       .sampled = static_cast<const int32_t*>(sampled.data()),
                                       .count = 300},
                                      stream_->get())
                  .ok());
  ASSERT_TRUE(stream_->synchronize().ok());
  EXPECT_EQ(ints(on_gpu, 300), expected);
}

}  // namespace
}  // namespace onepass
