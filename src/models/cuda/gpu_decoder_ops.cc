#include "kernels/cuda/linear.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/silu_and_mul.h"
#include "models/decoder_ops.h"

namespace onepass {
namespace {

class GpuDecoderOps final : public DecoderOps {
 public:
  GpuDecoderOps(DType dtype, std::unique_ptr<CudaLinear> linear, const Stream& stream)
      : dtype_(dtype), linear_(std::move(linear)), stream_(stream.cuda) {}

  DType activation_dtype() const override { return dtype_; }

  Status embedding(const WeightMatrix& table, const int32_t* ids, int64_t num_tokens, float* hidden) override {
    return run_gather_rows_cuda({.table = table.slices()[0].data,
                                 .table_dtype = table.dtype(),
                                 .table_rows = table.rows(),
                                 .table_row_stride = table.cols(),
                                 .index = ids,
                                 .out = hidden,
                                 .out_dtype = DType::kF32,
                                 .out_row_stride = table.cols(),
                                 .rows = num_tokens,
                                 .cols = table.cols()},
                                stream_);
  }

  Status rms_norm(const float* hidden, const FloatVector& weight, float eps, int64_t rows, void* out) override {
    return run_rms_norm_cuda({.x = hidden,
                              .x_dtype = DType::kF32,
                              .x_row_stride = weight.size,
                              .weight = weight.data,
                              .eps = eps,
                              .out = out,
                              .out_dtype = dtype_,
                              .out_row_stride = weight.size,
                              .rows = rows,
                              .cols = weight.size},
                             stream_);
  }

  Status linear(const void* x, const Linear& linear, int64_t rows, void* y) override {
    return product(x, linear.weight, linear.bias.data, rows, y, dtype_, linear.weight.rows(), false);
  }
  Status linear_add(const void* x, const Linear& linear, int64_t rows, float* hidden) override {
    return product(x, linear.weight, linear.bias.data, rows, hidden, DType::kF32, linear.weight.rows(), true);
  }
  Status logits(const void* x, const WeightMatrix& weight, int64_t rows, float* logits, int64_t row_stride) override {
    return product(x, weight, nullptr, rows, logits, DType::kF32, row_stride, false);
  }

  Status prepare(LinearUse use, const Linear& linear, int64_t max_rows, int64_t row_stride) override {
    CudaLinearParams params =
        product_params(nullptr, linear.weight, linear.bias.data, 0, nullptr,
                       use == LinearUse::kOutput ? dtype_ : DType::kF32, row_stride, use == LinearUse::kAdd);
    for (int64_t rows = 1;; rows = CudaLinear::next_planned_num_rows(rows)) {
      params.num_rows = rows;
      ONEPASS_RETURN_IF_ERROR(linear_->prepare(params));
      if (rows >= max_rows) return ok_status();
    }
  }

  Status silu_and_mul(const void* gate_up, int64_t rows, int64_t cols, void* out) override {
    return run_silu_and_mul_cuda({.dtype = dtype_,
                                  .gate_up = gate_up,
                                  .gate_up_row_stride = 2 * cols,
                                  .out = out,
                                  .out_row_stride = cols,
                                  .rows = rows,
                                  .cols = cols},
                                 stream_);
  }

  Status gather_rows(const void* from, DType dtype, int64_t from_rows, const int32_t* index, int64_t rows, int64_t cols,
                     void* to) override {
    return run_gather_rows_cuda({.table = from,
                                 .table_dtype = dtype,
                                 .table_rows = from_rows,
                                 .table_row_stride = cols,
                                 .index = index,
                                 .out = to,
                                 .out_dtype = dtype,
                                 .out_row_stride = cols,
                                 .rows = rows,
                                 .cols = cols},
                                stream_);
  }

 private:
  Status product(const void* x, const WeightMatrix& weight, const float* bias, int64_t rows, void* y, DType y_dtype,
                 int64_t y_row_stride, bool accumulate) {
    return linear_->run(product_params(x, weight, bias, rows, y, y_dtype, y_row_stride, accumulate), stream_);
  }

  CudaLinearParams product_params(const void* x, const WeightMatrix& weight, const float* bias, int64_t rows, void* y,
                                  DType y_dtype, int64_t y_row_stride, bool accumulate) const {
    return {.dtype = dtype_,
            .x = x,
            .x_row_stride = weight.cols(),
            .num_rows = rows,
            .weight = weight.slices()[0].data,
            .rows = weight.rows(),
            .cols = weight.cols(),
            .bias = bias,
            .y = y,
            .y_dtype = y_dtype,
            .y_row_stride = y_row_stride,
            .accumulate = accumulate};
  }

  const DType dtype_;
  const std::unique_ptr<CudaLinear> linear_;
  CUstream_st* const stream_;
};

}  // namespace

StatusOr<std::unique_ptr<DecoderOps>> make_gpu_decoder_ops(const DecoderOpsOptions& options, const Stream& stream) {
  ONEPASS_ASSIGN_OR_RETURN(const GpuInfo gpu, query_gpu(stream.device.index));
  ONEPASS_ASSIGN_OR_RETURN(
      std::unique_ptr<CudaLinear> linear,
      CudaLinear::create(gpu, {.plan_file = options.plan_file, .batch_invariant = options.batch_invariant}));
  return std::make_unique<GpuDecoderOps>(options.weights_dtype, std::move(linear), stream);
}

}  // namespace onepass
