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

  Status norm_linear(const NormedRows& rows, const Linear& linear, void* y) override {
    return product(normalize(rows), linear.weight, linear.bias.data, rows.rows, static_cast<float*>(y),
                   linear.weight.rows(), false);
  }
  Status norm_gated_linear(const NormedRows& rows, const Linear& linear, void* gate_up, void* y) override {
    const int64_t cols = linear.weight.rows() / 2;
    ONEPASS_RETURN_IF_ERROR(norm_linear(rows, linear, gate_up));
    run_silu_and_mul({.gate_up = static_cast<const float*>(gate_up),
                      .gate_up_row_stride = 2 * cols,
                      .out = static_cast<float*>(y),
                      .out_row_stride = cols,
                      .rows = rows.rows,
                      .cols = cols},
                     stream_);
    return ok_status();
  }
  Status linear_add(const void* x, const Linear& linear, int64_t rows, float* hidden) override {
    return product(x, linear.weight, linear.bias.data, rows, hidden, linear.weight.rows(), true);
  }
  Status norm_logits(const NormedRows& rows, const WeightMatrix& weight, float* logits, int64_t row_stride) override {
    return product(normalize(rows), weight, nullptr, rows.rows, logits, row_stride, false);
  }

  Status prepare(LinearUse, const Linear&, int64_t, int64_t) override { return ok_status(); }  // one way serves all

  Status gather_rows(const void* from, DType dtype, int64_t, const int32_t* index, int64_t rows, int64_t cols,
                     void* to) override {
    const size_t row = static_cast<size_t>(cols) * size_of(dtype);
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(static_cast<std::byte*>(to) + i * row, static_cast<const std::byte*>(from) + index[i] * row, row);
    }
    return ok_status();
  }

 private:
  const void* normalize(const NormedRows& rows) {
    run_rms_norm({.x = rows.hidden,
                  .x_row_stride = rows.norm.size,
                  .weight = rows.norm.data,
                  .eps = rows.eps,
                  .out = static_cast<float*>(rows.normed),
                  .out_row_stride = rows.norm.size,
                  .rows = rows.rows,
                  .cols = rows.norm.size},
                 stream_);
    return rows.normed;
  }

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
