// What a decoder's step is made of besides attention, on one device. Architectures are written over this interface
// once; each device fuses and lays out as suits it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/linear.h"
#include "models/decoder_weights.h"
#include "tensor/device.h"

namespace onepass {

// The residual stream and the logits are float32 on every device; the activations between operators are of
// activation_dtype(). All of them, and the weights, are memory of the stream's device, row-major without gaps, and do
// not overlap. Work is queued in the stream's order; an error is that of a launch. Used by one thread at a time.
class DecoderOps {
 public:
  virtual ~DecoderOps() = default;

  virtual DType activation_dtype() const = 0;

  // hidden[i] = row ids[i] of the table. REQUIRES: ids below table.rows().
  virtual Status embedding(const WeightMatrix& table, const int32_t* ids, int64_t num_tokens, float* hidden) = 0;

  // out[r] = hidden[r] / rms(hidden[r]) * weight.
  virtual Status rms_norm(const float* hidden, const FloatVector& weight, float eps, int64_t rows, void* out) = 0;

  // y = x W^T + bias, as activations.
  virtual Status linear(const void* x, const Linear& linear, int64_t rows, void* y) = 0;
  // hidden += x W^T + bias.
  virtual Status linear_add(const void* x, const Linear& linear, int64_t rows, float* hidden) = 0;
  // logits = x W^T, rows `row_stride` elements apart.
  virtual Status logits(const void* x, const WeightMatrix& weight, int64_t rows, float* logits, int64_t row_stride) = 0;

  // Chooses how a layer is computed for each number of rows up to `max_rows`, so that no step has to: kOutput for
  // linear(), kAdd for linear_add(), kLogits for logits() with rows `row_stride` elements apart.
  enum class LinearUse : uint8_t { kOutput, kAdd, kLogits };
  virtual Status prepare(LinearUse use, const Linear& linear, int64_t max_rows, int64_t row_stride) = 0;

  // out[r][c] = silu(gate_up[r][c]) * gate_up[r][cols + c].
  virtual Status silu_and_mul(const void* gate_up, int64_t rows, int64_t cols, void* out) = 0;

  // to[i] = from[index[i]] of rows of `cols` elements.
  virtual Status gather_rows(const void* from, DType dtype, int64_t from_rows, const int32_t* index, int64_t rows,
                             int64_t cols, void* to) = 0;
};

struct DecoderOpsOptions {
  // The dtype that the weights have on the device.
  DType weights_dtype = DType::kBF16;
  // A row's result follows from that row alone, bit for bit, whatever the number of rows.
  bool batch_invariant = false;
  // Where a GPU keeps what prepare() has found, for the next start; empty: nowhere.
  std::string plan_file;
};

// The operators of the stream's device; the stream outlives them. An error says what the device lacks.
StatusOr<std::unique_ptr<DecoderOps>> make_decoder_ops(const DecoderOpsOptions& options, const Stream& stream);

// Each in a file of its own.
std::unique_ptr<DecoderOps> make_cpu_decoder_ops(const Stream& stream);
StatusOr<std::unique_ptr<DecoderOps>> make_gpu_decoder_ops(const DecoderOpsOptions& options, const Stream& stream);

}  // namespace onepass
