// The decoder-only transformer that all architectures share: pre-norm, rotary positions, grouped-query attention, gated
// MLP. What they differ in is data (models/model_config.h).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/attention_backend.h"
#include "models/decoder_ops.h"
#include "models/decoder_weights.h"
#include "models/layer_stack.h"
#include "models/model_config.h"

namespace onepass {

// Activations of one step, in the device's memory; made once for the largest step.
struct DecoderWorkspace {
  struct Limits {
    int max_tokens = 0;
    int max_outputs = 0;  // rows of logits
  };
  static StatusOr<DecoderWorkspace> create(const ModelConfig& config, const Limits& limits, DType activation_dtype,
                                           const Device& device);

  Limits limits;
  DeviceBuffer hidden;     // [max_tokens, hidden_size] float32: the residual stream
  DeviceBuffer normed;     // [max_tokens, hidden_size]
  DeviceBuffer qkv;        // [max_tokens, (num_heads + 2 num_kv_heads) * head_dim]
  DeviceBuffer attention;  // [max_tokens, num_heads * head_dim]
  DeviceBuffer gate_up;    // [max_tokens, 2 * intermediate_size]
  DeviceBuffer inner;      // [max_tokens, intermediate_size]
  DeviceBuffer last_hidden,
      last_attention;  // hidden and attention of the rows whose logits are wanted, [max_outputs, ...]

  // What create() allocates.
  static int64_t size_bytes(const ModelConfig& config, const Limits& limits, DType activation_dtype);
};

// One step's tokens and where its logits go, in the device's memory; see engine/batch.h.
struct ForwardInput {
  int num_tokens = 0;
  const int32_t* input_ids = nullptr;  // [num_tokens], below vocab_size
  int num_output_rows = 0;
  const int32_t* output_rows = nullptr;  // the tokens whose logits are wanted, in their order; some more than once
  bool outputs_are_tokens = false;       // they are the step's tokens, one after the other
  float* logits = nullptr;               // [num_output_rows, vocab_size], rows logits_row_stride elements apart
  int64_t logits_row_stride = 0;         // on a GPU a multiple of 4
};

class Decoder {
 public:
  struct Options {
    std::string model_dir;
    bool dummy_weights = false;
    WeightLoading loading;
  };
  // Reads config.json and maps the weights, or brings them to the GPU. An error names the file, key or tensor.
  static StatusOr<std::unique_ptr<Decoder>> load(const Options& options, const Stream& stream);

  const ModelConfig& config() const { return config_; }
  DType weights_dtype() const { return weights_.layers[0].qkv.weight.dtype(); }
  int64_t num_parameters() const;
  // What a step of one token reads of the weights, and the operations of its matrix products without the output
  // layer's.
  int64_t weight_bytes_per_step() const;
  double flops_per_token() const;

  // What each layer's attention is: its backend is made for them. They live as long as the decoder.
  std::span<const AttentionLayer> attention_layers() const { return attention_layers_; }

  // Lets the operators choose how to compute each layer for steps within the limits, so that no step has to.
  Status prepare(DecoderOps& ops, const DecoderWorkspace::Limits& limits, int64_t logits_row_stride) const;

  // The kernel for all layers of steps of few decodes; null where there is none.
  StatusOr<std::unique_ptr<LayerStack>> make_stack(KvPool& pool, const Stream& stream) const;

  // One step: row i of the logits are those after token output_rows[i]. `backend` has planned the same step, or, with a
  // stack, placed its pages. On a GPU the work is queued. REQUIRES: the workspace's limits hold; a stack is for
  // outputs_are_tokens, one token of each request, and no more than its rows.
  Status forward(const ForwardInput& input, DecoderOps& ops, AttentionBackend& backend, DecoderWorkspace& workspace,
                 const Stream& stream, LayerStack* stack = nullptr) const;

 private:
  struct Step;  // one call of forward

  Decoder(ModelConfig config, DecoderWeights weights);
  Status attention_block(int index, Step& step) const;
  Status mlp_block(const LayerWeights& layer, Step& step) const;

  const ModelConfig config_;
  const DecoderWeights weights_;
  std::vector<AttentionLayer> attention_layers_;  // [num_layers]
};

}  // namespace onepass
