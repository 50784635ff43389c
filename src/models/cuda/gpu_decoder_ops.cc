#include "kernels/cuda/linear.h"
#include "kernels/cuda/rows.h"
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

  Status norm_linear(const NormedRows& rows, const Linear& linear, void* y) override {
    CudaLinearParams params = product(rows.hidden, linear, rows.rows, y, dtype_);
    set_norm(params, rows);
    return linear_->run(params, stream_);
  }
  Status norm_gated_linear(const NormedRows& rows, const Linear& linear, void* gate_up, void* y) override {
    CudaLinearParams params = product(rows.hidden, linear, rows.rows, y, dtype_);
    set_norm(params, rows);
    set_gated(params, gate_up);
    return linear_->run(params, stream_);
  }
  Status linear_add(const void* x, const Linear& linear, int64_t rows, float* hidden) override {
    CudaLinearParams params = product(x, linear, rows, hidden, DType::kF32);
    params.accumulate = true;
    return linear_->run(params, stream_);
  }
  Status norm_logits(const NormedRows& rows, const WeightMatrix& weight, float* logits, int64_t row_stride) override {
    CudaLinearParams params = product(rows.hidden, {.weight = weight}, rows.rows, logits, DType::kF32);
    params.y_row_stride = row_stride;
    set_norm(params, rows);
    return linear_->run(params, stream_);
  }

  Status prepare(LinearUse use, const Linear& linear, int64_t max_rows, int64_t row_stride) override {
    const bool has_float_output = use == LinearUse::kLinearAdd || use == LinearUse::kNormLogits;
    CudaLinearParams params = product(nullptr, linear, 0, nullptr, has_float_output ? DType::kF32 : dtype_);
    params.accumulate = use == LinearUse::kLinearAdd;
    // No plan depends on where a norm is: the weights' address stands for it.
    if (use != LinearUse::kLinearAdd) params.norm = static_cast<const float*>(params.weight);
    if (use == LinearUse::kNormGatedLinear) set_gated(params, nullptr);
    if (use == LinearUse::kNormLogits) params.y_row_stride = row_stride;
    params.num_rows = max_rows;
    return linear_->prepare_up_to(params);
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
  CudaLinearParams product(const void* x, const Linear& linear, int64_t rows, void* y, DType y_dtype) const {
    const WeightMatrix& weight = linear.weight;
    return {.dtype = dtype_,
            .x = x,
            .x_row_stride = weight.cols(),
            .num_rows = rows,
            .weight = weight.slices()[0].data,
            .rows = weight.rows(),
            .cols = weight.cols(),
            .bias = linear.bias.data,
            .y = y,
            .y_dtype = y_dtype,
            .y_row_stride = weight.rows()};
  }
  static void set_norm(CudaLinearParams& params, const NormedRows& rows) {
    params.norm = rows.norm.data;
    params.norm_eps = rows.eps;
    params.normed = rows.normed;
  }
  static void set_gated(CudaLinearParams& params, void* gate_up) {
    params.gated = true;
    params.products = gate_up;
    params.y_row_stride = params.rows / 2;
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
