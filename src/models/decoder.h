// The decoder-only transformer that all architectures share: pre-norm, rotary positions, grouped-query attention, gated
// MLP. What they differ in is data (models/model_config.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention/attention_backend.h"
#include "models/decoder_weights.h"
#include "models/model_config.h"

namespace onepass {

// Activations of one step, float32; made once for the largest step.
struct DecoderWorkspace {
  static StatusOr<DecoderWorkspace> create(const ModelConfig& config, int max_tokens);

  int max_tokens = 0;
  Buffer hidden;     // [max_tokens, hidden_size]: the residual stream
  Buffer normed;     // [max_tokens, hidden_size]
  Buffer qkv;        // [max_tokens, (num_heads + 2 num_kv_heads) * head_dim]
  Buffer attention;  // [max_tokens, num_heads * head_dim]
  Buffer gate_up;    // [max_tokens, 2 * intermediate_size]
  Buffer inner;      // [max_tokens, intermediate_size]
  LinearWorkspace linear;

  // What create() allocates.
  static int64_t size_bytes(const ModelConfig& config, int max_tokens);
};

// One step's tokens; see engine/batch.h.
struct ForwardInput {
  int num_tokens = 0;
  const int32_t* input_ids = nullptr;  // [num_tokens], below vocab_size
  const int32_t* positions = nullptr;  // [num_tokens]
  int num_output_rows = 0;
  const int32_t* output_rows = nullptr;  // the tokens whose logits are wanted, ascending
};

class Decoder {
 public:
  struct Options {
    std::string model_dir;
    bool dummy_weights = false;
  };
  // Reads config.json and maps the weights. An error names the file, key or tensor.
  static StatusOr<std::unique_ptr<Decoder>> load(const Options& options, const Stream& stream);

  const ModelConfig& config() const { return config_; }
  DType weights_dtype() const { return weights_.layers[0].qkv.weight.dtype(); }
  int64_t num_parameters() const;
  // What a step of one token reads of the weights, and the operations of its matrix products without the output
  // layer's.
  int64_t weight_bytes_per_step() const;
  double flops_per_token() const;

  // One step: logits[i] = the logits after token output_rows[i], [num_output_rows, vocab_size]. `backend` has planned
  // the same step. REQUIRES: num_tokens <= workspace.max_tokens.
  void forward(const ForwardInput& input, AttentionBackend& backend, float* logits, DecoderWorkspace& workspace,
               const Stream& stream) const;

 private:
  struct Step;  // one call of forward

  Decoder(ModelConfig config, DecoderWeights weights);
  void attention_block(int index, Step& step) const;
  void mlp_block(const LayerWeights& layer, Step& step) const;

  const ModelConfig config_;
  const DecoderWeights weights_;
  std::vector<AttentionLayer> attention_layers_;  // [num_layers]
};

}  // namespace onepass
