#include "models/decoder_weights.h"

#include <algorithm>

#include "base/strings.h"

namespace onepass {
namespace {

class Loader {
 public:
  Loader(WeightSource& source, std::vector<Buffer>& converted) : source_(source), converted_(converted) {}

  StatusOr<std::vector<float>> vector(const std::string& name, int64_t size) {
    ONEPASS_ASSIGN_OR_RETURN(const TensorView view, source_.tensor(name, {size}));
    std::vector<float> values(size);
    convert_to_float(view.data, view.dtype, size, values.data());
    return values;
  }

  struct Part {
    std::string name;  // without ".weight"
    int64_t rows;
  };

  // The parts stacked: where the file has them, unless their dtypes differ.
  StatusOr<WeightMatrix> matrix(const std::vector<Part>& parts, int64_t cols) {
    std::vector<MatrixSlice> slices;
    bool same = true;
    for (const Part& part : parts) {
      ONEPASS_ASSIGN_OR_RETURN(const TensorView view, source_.tensor(part.name + ".weight", {part.rows, cols}));
      slices.push_back({view.data, view.dtype, part.rows});
      same = same && view.dtype == slices[0].dtype;
    }
    if (!same) {
      for (MatrixSlice& slice : slices) {
        ONEPASS_ASSIGN_OR_RETURN(Buffer buffer, Buffer::allocate(slice.rows * cols * sizeof(float)));
        convert_to_float(slice.data, slice.dtype, slice.rows * cols, buffer.as<float>());
        slice = {buffer.data(), DType::kF32, slice.rows};
        converted_.push_back(std::move(buffer));
      }
    }
    return WeightMatrix(std::move(slices), cols);
  }

  StatusOr<Linear> linear(const std::vector<Part>& parts, int64_t cols, bool with_bias) {
    Linear linear;
    ONEPASS_ASSIGN_OR_RETURN(linear.weight, matrix(parts, cols));
    if (!with_bias) return linear;
    for (const Part& part : parts) {
      ONEPASS_ASSIGN_OR_RETURN(const std::vector<float> bias, vector(part.name + ".bias", part.rows));
      linear.bias.insert(linear.bias.end(), bias.begin(), bias.end());
    }
    return linear;
  }

 private:
  WeightSource& source_;
  std::vector<Buffer>& converted_;
};

StatusOr<LayerWeights> load_layer(const ModelConfig& config, int index, Loader& loader) {
  const std::string prefix = str_cat("model.layers.", index, ".");
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  const int64_t q_rows = int64_t{config.num_heads} * config.head_dim,
                kv_rows = int64_t{config.num_kv_heads} * config.head_dim;
  LayerWeights layer;
  ONEPASS_ASSIGN_OR_RETURN(layer.input_norm, loader.vector(prefix + "input_layernorm.weight", hidden));
  ONEPASS_ASSIGN_OR_RETURN(
      layer.qkv,
      loader.linear({{attention + "q_proj", q_rows}, {attention + "k_proj", kv_rows}, {attention + "v_proj", kv_rows}},
                    hidden, config.qkv_bias));
  if (config.qk_norm) {
    ONEPASS_ASSIGN_OR_RETURN(layer.q_norm, loader.vector(attention + "q_norm.weight", config.head_dim));
    ONEPASS_ASSIGN_OR_RETURN(layer.k_norm, loader.vector(attention + "k_norm.weight", config.head_dim));
  }
  ONEPASS_ASSIGN_OR_RETURN(layer.o, loader.linear({{attention + "o_proj", hidden}}, q_rows, config.o_bias));
  ONEPASS_ASSIGN_OR_RETURN(layer.post_attention_norm,
                           loader.vector(prefix + "post_attention_layernorm.weight", hidden));
  ONEPASS_ASSIGN_OR_RETURN(
      layer.gate_up, loader.linear({{mlp + "gate_proj", inner}, {mlp + "up_proj", inner}}, hidden, config.mlp_bias));
  ONEPASS_ASSIGN_OR_RETURN(layer.down, loader.linear({{mlp + "down_proj", hidden}}, inner, config.mlp_bias));
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

StatusOr<DecoderWeights> load_decoder_weights(const ModelConfig& config, std::unique_ptr<WeightSource> source) {
  DecoderWeights weights;
  weights.source = std::move(source);
  Loader loader(*weights.source, weights.converted);
  ONEPASS_ASSIGN_OR_RETURN(weights.embedding,
                           loader.matrix({{"model.embed_tokens", config.vocab_size}}, config.hidden_size));
  for (int index = 0; index < config.num_layers; ++index) {
    ONEPASS_ASSIGN_OR_RETURN(LayerWeights layer, load_layer(config, index, loader));
    weights.layers.push_back(std::move(layer));
  }
  ONEPASS_ASSIGN_OR_RETURN(weights.final_norm, loader.vector("model.norm.weight", config.hidden_size));
  if (config.tie_word_embeddings) {
    weights.lm_head = weights.embedding;
  } else {
    ONEPASS_ASSIGN_OR_RETURN(weights.lm_head, loader.matrix({{"lm_head", config.vocab_size}}, config.hidden_size));
  }
  ONEPASS_RETURN_IF_ERROR(check_untaken(config, *weights.source));
  return weights;
}

}  // namespace onepass
