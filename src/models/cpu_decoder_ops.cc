#include <cstring>

#include "kernels/activation.h"
#include "kernels/embedding.h"
#include "kernels/norm.h"
#include "models/decoder_ops.h"

namespace onepass {
namespace {

class CpuDecoderOps final : public DecoderOps {
 public:
  explicit CpuDecoderOps(const Stream& stream) : stream_(stream) {}

  DType activation_dtype() const override { return DType::kF32; }

  Status embedding(const WeightMatrix& table, const int32_t* ids, int64_t num_tokens, float* hidden) override {
    run_embedding(
        {.ids = ids, .num_tokens = num_tokens, .table = &table, .out = hidden, .out_row_stride = table.cols()},
        stream_);
    return ok_status();
  }

  Status rms_norm(const float* hidden, const FloatVector& weight, float eps, int64_t rows, void* out) override {
    run_rms_norm({.x = hidden,
                  .x_row_stride = weight.size,
                  .weight = weight.data,
                  .eps = eps,
                  .out = static_cast<float*>(out),
                  .out_row_stride = weight.size,
                  .rows = rows,
                  .cols = weight.size},
                 stream_);
    return ok_status();
  }

  Status linear(const void* x, const Linear& linear, int64_t rows, void* y) override {
    return product(x, linear.weight, linear.bias.data, rows, static_cast<float*>(y), linear.weight.rows(), false);
  }
  Status linear_add(const void* x, const Linear& linear, int64_t rows, float* hidden) override {
    return product(x, linear.weight, linear.bias.data, rows, hidden, linear.weight.rows(), true);
  }
  Status logits(const void* x, const WeightMatrix& weight, int64_t rows, float* logits, int64_t row_stride) override {
    return product(x, weight, nullptr, rows, logits, row_stride, false);
  }

  Status prepare(LinearUse, const Linear&, int64_t, int64_t) override { return ok_status(); }  // one way serves all

  Status silu_and_mul(const void* gate_up, int64_t rows, int64_t cols, void* out) override {
    run_silu_and_mul({.gate_up = static_cast<const float*>(gate_up),
                      .gate_up_row_stride = 2 * cols,
                      .out = static_cast<float*>(out),
                      .out_row_stride = cols,
                      .rows = rows,
                      .cols = cols},
                     stream_);
    return ok_status();
  }

  Status gather_rows(const void* from, DType dtype, int64_t, const int32_t* index, int64_t rows, int64_t cols,
                     void* to) override {
    const size_t row = static_cast<size_t>(cols) * size_of(dtype);
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(static_cast<std::byte*>(to) + i * row, static_cast<const std::byte*>(from) + index[i] * row, row);
    }
    return ok_status();
  }

 private:
  Status product(const void* x, const WeightMatrix& weight, const float* bias, int64_t rows, float* y,
                 int64_t y_row_stride, bool accumulate) {
    run_linear({.x = static_cast<const float*>(x),
                .x_row_stride = weight.cols(),
                .num_rows = rows,
                .weight = &weight,
                .bias = bias,
                .y = y,
                .y_row_stride = y_row_stride,
                .accumulate = accumulate},
               workspace_, stream_);
    return ok_status();
  }

  const Stream stream_;
  LinearWorkspace workspace_;
};

}  // namespace

std::unique_ptr<DecoderOps> make_cpu_decoder_ops(const Stream& stream) {
  return std::make_unique<CpuDecoderOps>(stream);
}

StatusOr<std::unique_ptr<DecoderOps>> make_decoder_ops(const DecoderOpsOptions& options, const Stream& stream) {
  if (stream.device.kind == DeviceKind::kCuda) return make_gpu_decoder_ops(options, stream);
  return make_cpu_decoder_ops(stream);
}

}  // namespace onepass
