// What config.json says of a decoder-only model, in the terms of models/decoder.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "tensor/dtype.h"

namespace onepass {

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM"
  int vocab_size = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int max_position_embeddings = 0;  // the context length that the model was made for
  float rms_norm_eps = 0.0f;
  bool tie_word_embeddings = false;
  DType dtype = DType::kBF16;  // that the config announces; the files' own counts

  // Rotary embedding: one frequency for each pair of elements, and what cos and sin are multiplied by (YaRN).
  std::vector<double> rope_inv_freq;  // [head_dim / 2]
  float rope_attention_factor = 1.0f;

  // Keys that a token of each layer sees, itself included; 0: all before it. Hugging Face's sliding_window.
  std::vector<int> sliding_windows;  // [num_layers]

  // What the architectures differ in.
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;  // RMS norm of each head of Q and K before the rotary embedding

  std::vector<int32_t> eos_token_ids;  // of generation_config.json where it names any, else of config.json
};

// Reads DIR/config.json (and the end tokens of generation_config.json). One-line errors: a missing or absurd value, an
// unknown architecture (with the known ones), a quantised checkpoint.
StatusOr<ModelConfig> load_model_config(const std::string& model_dir);

}  // namespace onepass
