#include "models/decoder_weights.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_format.h"
#include "base/strings.h"
#include "models/weight_store.h"
#include "tensor/cuda/cuda_copy.h"

namespace onepass {
namespace {

// Adds up what a GPU's store would hold, and looks for no tensor.
class WeightCounter final : public WeightStore {
 public:
  StatusOr<WeightMatrix> matrix(const std::vector<WeightPart>& parts, int64_t cols) override {
    const int64_t rows = count(parts);
    bytes_ += rows * cols * static_cast<int64_t>(size_of(DType::kBF16));  // or float16
    return WeightMatrix({{nullptr, DType::kBF16, rows}}, cols);
  }
  StatusOr<FloatVector> vector(const std::vector<WeightPart>& parts) override {
    bytes_ += count(parts) * static_cast<int64_t>(sizeof(float));
    return FloatVector();
  }
  StatusOr<std::vector<DeviceBuffer>> release() override { return std::vector<DeviceBuffer>(); }

  int64_t bytes() const { return bytes_; }

 private:
  static int64_t count(const std::vector<WeightPart>& parts) {
    int64_t rows = 0;
    for (const WeightPart& part : parts) rows += part.rows;
    return rows;
  }
  int64_t bytes_ = 0;
};

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

// Every tensor of the forward pass, in its order.
Status load_all(const ModelConfig& config, WeightStore& store, const WeightLoading& loading, DecoderWeights& weights) {
  const int total = config.num_layers + 2;
  const auto report = [&](int done) {
    if (loading.on_progress) loading.on_progress(done, total);
  };
  ONEPASS_ASSIGN_OR_RETURN(weights.embedding,
                           store.matrix({{"model.embed_tokens.weight", config.vocab_size}}, config.hidden_size));
  report(1);
  for (int index = 0; index < config.num_layers; ++index) {
    ONEPASS_ASSIGN_OR_RETURN(LayerWeights layer, load_layer(config, index, store));
    weights.layers.push_back(std::move(layer));
    report(index + 2);
  }
  ONEPASS_ASSIGN_OR_RETURN(weights.final_norm, store.vector({{"model.norm.weight", config.hidden_size}}));
  if (config.tie_word_embeddings) {
    weights.lm_head = weights.embedding;
  } else {
    ONEPASS_ASSIGN_OR_RETURN(weights.lm_head,
                             store.matrix({{"lm_head.weight", config.vocab_size}}, config.hidden_size));
  }
  report(total);
  return ok_status();
}

Status check_gpu_memory(const ModelConfig& config, const WeightLoading& loading, const Device& device) {
  WeightCounter counter;
  DecoderWeights nothing;
  ONEPASS_RETURN_IF_ERROR(load_all(config, counter, {}, nothing));
  ONEPASS_ASSIGN_OR_RETURN(const CudaMemory memory, cuda_memory());
  return check_weights_fit(counter.bytes(), static_cast<int64_t>(memory.free), static_cast<int64_t>(memory.total),
                           loading.gpu_memory_fraction, device);
}

}  // namespace

Status check_weights_fit(int64_t weight_bytes, int64_t free_bytes, int64_t total_bytes, double memory_fraction,
                         const Device& device) {
  const auto used = static_cast<double>(total_bytes - free_bytes), total = static_cast<double>(total_bytes);
  const double room = std::max(0.0, memory_fraction * total - used);
  if (static_cast<double>(weight_bytes) <= room) return ok_status();
  constexpr double kMiB = 1 << 20;
  const std::string limit =
      memory_fraction < 1.0 ? absl::StrFormat("what --mem-fraction %g of the %.0f MiB of %s leaves beside %.0f in use",
                                              memory_fraction, total / kMiB, to_string(device), used / kMiB)
                            : absl::StrFormat("what is free of the %.0f MiB of %s", total / kMiB, to_string(device));
  return resource_exhausted(absl::StrFormat("weights: expected at most %.0f MiB, %s, found %.0f MiB", room / kMiB,
                                            limit, static_cast<double>(weight_bytes) / kMiB));
}

StatusOr<DecoderWeights> load_decoder_weights(const ModelConfig& config, std::unique_ptr<WeightSource> source,
                                              const Stream& stream, const WeightLoading& loading) {
  if (stream.device.kind == DeviceKind::kCuda) {
    ONEPASS_RETURN_IF_ERROR(check_gpu_memory(config, loading, stream.device));
  }
  DecoderWeights weights;
  weights.source = std::move(source);
  ONEPASS_ASSIGN_OR_RETURN(const std::unique_ptr<WeightStore> store, make_weight_store(*weights.source, stream));
  ONEPASS_RETURN_IF_ERROR(load_all(config, *store, loading, weights));
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
