#include "models/decoder_weights.h"

#include <span>

#include "base/strings.h"
#include "models/weight_store.h"

namespace onepass {
namespace {

// The parts `names` (without ".weight") of a dense layer.
StatusOr<Linear> load_linear(WeightStore& store, std::vector<WeightPart> parts, int64_t cols, bool with_bias) {
  const std::vector<WeightPart> names = parts;
  for (WeightPart& part : parts) part.name += ".weight";
  Linear linear;
  ONEPASS_ASSIGN_OR_RETURN(linear.weight, store.matrix(parts, cols));
  if (!with_bias) return linear;
  for (size_t i = 0; i < parts.size(); ++i) parts[i].name = names[i].name + ".bias";
  ONEPASS_ASSIGN_OR_RETURN(linear.bias, store.vector(parts));
  return linear;
}

StatusOr<LayerWeights> load_layer(const ModelConfig& config, int index, WeightStore& store) {
  const std::string prefix = str_cat("model.layers.", index, ".");
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  const int64_t q_rows = int64_t{config.num_heads} * config.head_dim,
                kv_rows = int64_t{config.num_kv_heads} * config.head_dim;
  LayerWeights layer;
  ONEPASS_ASSIGN_OR_RETURN(layer.input_norm, store.vector({{prefix + "input_layernorm.weight", hidden}}));
  ONEPASS_ASSIGN_OR_RETURN(
      layer.qkv,
      load_linear(store,
                  {{attention + "q_proj", q_rows}, {attention + "k_proj", kv_rows}, {attention + "v_proj", kv_rows}},
                  hidden, config.qkv_bias));
  if (config.qk_norm) {
    ONEPASS_ASSIGN_OR_RETURN(layer.q_norm, store.vector({{attention + "q_norm.weight", config.head_dim}}));
    ONEPASS_ASSIGN_OR_RETURN(layer.k_norm, store.vector({{attention + "k_norm.weight", config.head_dim}}));
  }
  ONEPASS_ASSIGN_OR_RETURN(layer.o, load_linear(store, {{attention + "o_proj", hidden}}, q_rows, config.o_bias));
  ONEPASS_ASSIGN_OR_RETURN(layer.post_attention_norm,
                           store.vector({{prefix + "post_attention_layernorm.weight", hidden}}));
  ONEPASS_ASSIGN_OR_RETURN(layer.gate_up, load_linear(store, {{mlp + "gate_proj", inner}, {mlp + "up_proj", inner}},
                                                      hidden, config.mlp_bias));
  ONEPASS_ASSIGN_OR_RETURN(layer.down, load_linear(store, {{mlp + "down_proj", hidden}}, inner, config.mlp_bias));
  return layer;
}

// A tensor that the forward pass would ignore (a bias that the config does not announce, a 33rd layer) means that
// config and files do not belong together, and the text would be quietly wrong.
Status check_untaken(const ModelConfig& config, const WeightSource& source) {
  for (const std::string& name : source.untaken()) {
    if (name.ends_with("rotary_emb.inv_freq")) continue;                   // computed from the config
    if (name == "lm_head.weight" && config.tie_word_embeddings) continue;  // a copy of the embedding
    return invalid_argument("tensor ", printable(name), ": expected only what ", config.architecture,
                            " with this config.json has, found this one too");
  }
  return ok_status();
}

}  // namespace

StatusOr<DecoderWeights> load_decoder_weights(const ModelConfig& config, std::unique_ptr<WeightSource> source,
                                              const Stream& stream) {
  DecoderWeights weights;
  weights.source = std::move(source);
  ONEPASS_ASSIGN_OR_RETURN(const std::unique_ptr<WeightStore> store, make_weight_store(*weights.source, stream));
  const std::vector<WeightPart> lm_head = {{"lm_head.weight", config.vocab_size}};
  ONEPASS_ASSIGN_OR_RETURN(weights.embedding,
                           store->matrix({{"model.embed_tokens.weight", config.vocab_size}}, config.hidden_size));
  for (int index = 0; index < config.num_layers; ++index) {
    ONEPASS_ASSIGN_OR_RETURN(LayerWeights layer, load_layer(config, index, *store));
    weights.layers.push_back(std::move(layer));
  }
  ONEPASS_ASSIGN_OR_RETURN(weights.final_norm, store->vector({{"model.norm.weight", config.hidden_size}}));
  if (config.tie_word_embeddings) {
    weights.lm_head = weights.embedding;
  } else {
    ONEPASS_ASSIGN_OR_RETURN(weights.lm_head, store->matrix(lm_head, config.hidden_size));
  }
  ONEPASS_RETURN_IF_ERROR(check_untaken(config, *weights.source));
  ONEPASS_ASSIGN_OR_RETURN(weights.buffers, store->release());

  const auto frequencies = std::as_bytes(std::span(config.rope_inv_freq));
  ONEPASS_ASSIGN_OR_RETURN(DeviceBuffer buffer,
                           DeviceBuffer::allocate_uninitialized(frequencies.size(), stream.device));
  ONEPASS_RETURN_IF_ERROR(buffer.upload(frequencies));
  weights.rope_inv_freq = buffer.as<double>();
  weights.buffers.push_back(std::move(buffer));
  return weights;
}

}  // namespace onepass
