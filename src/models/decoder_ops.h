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

// Rows of the residual stream that a product takes normalised: x / sqrt(mean(x^2) + eps) * norm. Where the norm is a
// step of its own, its result goes to `normed`.
struct NormedRows {
  const float* hidden = nullptr;  // [rows, norm.size]
  int64_t rows = 0;
  FloatVector norm;
  float eps = 0.0f;
  void* normed = nullptr;  // room for [rows, norm.size] activations
};

// The residual stream and the logits are float32 on every device; the activations between operators are of
// activation_dtype(). All of them, and the weights, are memory of the stream's device, row-major without gaps, and do
// not overlap. Work is queued in the stream's order; an error is that of a launch. Used by one thread at a time.
class DecoderOps {
 public:
  virtual ~DecoderOps() = default;

  virtual DType activation_dtype() const = 0;

  // hidden[i] = row ids[i] of the table. REQUIRES: ids below table.rows().
  virtual Status embedding(const WeightMatrix& table, const int32_t* ids, int64_t num_tokens, float* hidden) = 0;

  // y = norm(hidden) W^T + bias, as activations.
  virtual Status norm_linear(const NormedRows& rows, const Linear& linear, void* y) = 0;
  // y = silu(gate) * up, as activations, where [gate, up] = norm(hidden) W^T + bias. `gate_up` is room for those,
  // [rows, linear.weight.rows()] activations.
  virtual Status norm_gated_linear(const NormedRows& rows, const Linear& linear, void* gate_up, void* y) = 0;
  // hidden += x W^T + bias.
  virtual Status linear_add(const void* x, const Linear& linear, int64_t rows, float* hidden) = 0;
  // logits = norm(hidden) W^T, rows `row_stride` elements apart.
  virtual Status norm_logits(const NormedRows& rows, const WeightMatrix& weight, float* logits, int64_t row_stride) = 0;

  // Chooses how a layer is computed for each number of rows up to `max_rows`, so that no step has to: each use is the
  // method of its name, kNormLogits with rows `row_stride` elements apart.
  enum class LinearUse : uint8_t { kNormLinear, kNormGatedLinear, kLinearAdd, kNormLogits };
  virtual Status prepare(LinearUse use, const Linear& linear, int64_t max_rows, int64_t row_stride) = 0;

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
