// The tensors of a decoder, as its forward pass uses them.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "kernels/linear.h"
#include "models/model_config.h"
#include "models/weight_source.h"

namespace onepass {

// A dense layer: weights where the source keeps them, and a bias (empty: none).
struct Linear {
  WeightMatrix weight;
  std::vector<float> bias;

  const float* bias_data() const { return bias.empty() ? nullptr : bias.data(); }
};

struct LayerWeights {
  std::vector<float> input_norm;           // [hidden_size]
  Linear qkv;                              // [(num_heads + 2 num_kv_heads) * head_dim, hidden_size]
  std::vector<float> q_norm, k_norm;       // [head_dim]; empty: none
  Linear o;                                // [hidden_size, num_heads * head_dim]
  std::vector<float> post_attention_norm;  // [hidden_size]
  Linear gate_up;                          // [2 intermediate_size, hidden_size]
  Linear down;                             // [hidden_size, intermediate_size]
};

struct DecoderWeights {
  WeightMatrix embedding;  // [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;
  WeightMatrix lm_head;  // the embedding itself when they are tied

  std::unique_ptr<WeightSource> source;  // owns what the matrices point to
  std::vector<Buffer> converted;         // matrices whose parts came in different dtypes, as float32
};

// Takes every tensor that the config asks for from `source`; an error names the first that is missing, has another
// shape or that the config does not account for.
StatusOr<DecoderWeights> load_decoder_weights(const ModelConfig& config, std::unique_ptr<WeightSource> source);

}  // namespace onepass
