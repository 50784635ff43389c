#include "models/decoder.h"

#include <array>
#include <cmath>
#include <utility>

#include "base/check.h"

namespace onepass {

struct Decoder::Step {
  const ForwardInput& input;
  DecoderOps& ops;
  AttentionBackend& backend;
  DecoderWorkspace& workspace;
  const Stream& stream;
  // The rows at work: the step's tokens, and in the end those whose logits are wanted.
  int num_rows;
  float* hidden;
  void* attention;

  NormedRows normed(const FloatVector& norm, float eps) const {
    return {.hidden = hidden, .rows = num_rows, .norm = norm, .eps = eps, .normed = workspace.normed.data()};
  }

  // Keeps the rows whose logits are wanted, of the residual stream and of the attention's output.
  Status keep_output_rows(int64_t hidden_size, int64_t attention_size) {
    if (input.outputs_are_tokens) return ok_status();
    float* const last_hidden = workspace.last_hidden.as<float>();
    void* const last_attention = workspace.last_attention.data();
    ONEPASS_RETURN_IF_ERROR(ops.gather_rows(hidden, DType::kF32, num_rows, input.output_rows, input.num_output_rows,
                                            hidden_size, last_hidden));
    ONEPASS_RETURN_IF_ERROR(ops.gather_rows(attention, ops.activation_dtype(), num_rows, input.output_rows,
                                            input.num_output_rows, attention_size, last_attention));
    num_rows = input.num_output_rows;
    hidden = last_hidden;
    attention = last_attention;
    return ok_status();
  }
};

Status Decoder::prepare(DecoderOps& ops, const DecoderWorkspace::Limits& limits, int64_t logits_row_stride) const {
  using Use = DecoderOps::LinearUse;
  const LayerWeights& layer = weights_.layers[0];  // all layers have the same shapes
  for (const auto& [use, linear] : {std::pair{Use::kNormLinear, &layer.qkv},
                                    {Use::kLinearAdd, &layer.o},
                                    {Use::kNormGatedLinear, &layer.gate_up},
                                    {Use::kLinearAdd, &layer.down}}) {
    ONEPASS_RETURN_IF_ERROR(ops.prepare(use, *linear, limits.max_tokens, linear->weight.rows()));
  }
  return ops.prepare(Use::kNormLogits, {.weight = weights_.lm_head}, limits.max_outputs, logits_row_stride);
}

Status Decoder::forward(const ForwardInput& input, DecoderOps& ops, AttentionBackend& backend,
                        DecoderWorkspace& workspace, const Stream& stream, LayerStack* stack) const {
  ONEPASS_CHECK_LE(input.num_tokens, workspace.limits.max_tokens);
  ONEPASS_CHECK_LE(input.num_output_rows, workspace.limits.max_outputs);
  Step step{.input = input,
            .ops = ops,
            .backend = backend,
            .workspace = workspace,
            .stream = stream,
            .num_rows = input.num_tokens,
            .hidden = workspace.hidden.as<float>(),
            .attention = workspace.attention.data()};
  ONEPASS_RETURN_IF_ERROR(ops.embedding(weights_.embedding, input.input_ids, input.num_tokens, step.hidden));
  if (stack != nullptr) {
    ONEPASS_RETURN_IF_ERROR(stack->run(step.num_rows, step.hidden, backend, stream));
  }
  for (int index = 0; index < config_.num_layers && stack == nullptr; ++index) {
    ONEPASS_RETURN_IF_ERROR(attention_block(index, step));
    if (step.num_rows == 0) return ok_status();  // no logits are wanted: K and V are stored
    ONEPASS_RETURN_IF_ERROR(mlp_block(weights_.layers[index], step));
  }
  return ops.norm_logits(step.normed(weights_.final_norm, config_.rms_norm_eps), weights_.lm_head, input.logits,
                         input.logits_row_stride);
}

StatusOr<std::unique_ptr<LayerStack>> Decoder::make_stack(KvPool& pool, const Stream& stream) const {
  return make_layer_stack({.config = config_, .weights = weights_, .attention = attention_layers_, .pool = pool},
                          stream);
}

// hidden += o(attention(qkv(norm(hidden)))); the rotary embedding and the norm of Q and K are the backend's.
Status Decoder::attention_block(int index, Step& step) const {
  const LayerWeights& layer = weights_.layers[index];
  const int64_t head_dim = config_.head_dim;
  const int64_t q_size = config_.num_heads * head_dim, kv_size = config_.num_kv_heads * head_dim;
  const int64_t row_stride = q_size + 2 * kv_size;
  const auto element = static_cast<int64_t>(size_of(step.ops.activation_dtype()));
  auto* const qkv = step.workspace.qkv.as<std::byte>();

  ONEPASS_RETURN_IF_ERROR(step.ops.norm_linear(step.normed(layer.input_norm, config_.rms_norm_eps), layer.qkv, qkv));
  ONEPASS_RETURN_IF_ERROR(step.backend.run(attention_layers_[index],
                                           {.q = qkv,
                                            .k = qkv + q_size * element,
                                            .v = qkv + (q_size + kv_size) * element,
                                            .row_stride = row_stride,
                                            .out = step.attention,
                                            .out_row_stride = q_size,
                                            .dtype = step.ops.activation_dtype()},
                                           step.stream));
  // After the last layer's attention, the other rows' work is done: their K and V are stored.
  if (index + 1 == config_.num_layers) ONEPASS_RETURN_IF_ERROR(step.keep_output_rows(config_.hidden_size, q_size));
  return step.ops.linear_add(step.attention, layer.o, step.num_rows, step.hidden);
}

// hidden += down(silu(gate) * up), where [gate, up] = gate_up(norm(hidden))
Status Decoder::mlp_block(const LayerWeights& layer, Step& step) const {
  void* const inner = step.workspace.inner.data();
  ONEPASS_RETURN_IF_ERROR(step.ops.norm_gated_linear(step.normed(layer.post_attention_norm, config_.rms_norm_eps),
                                                     layer.gate_up, step.workspace.gate_up.data(), inner));
  return step.ops.linear_add(inner, layer.down, step.num_rows, step.hidden);
}

StatusOr<std::unique_ptr<Decoder>> Decoder::load(const Options& options, const Stream& stream) {
  ONEPASS_ASSIGN_OR_RETURN(ModelConfig config, load_model_config(options.model_dir));
  std::unique_ptr<WeightSource> source;
  if (options.dummy_weights) {
    source = make_random_weights(config.dtype, stream);
  } else {
    ONEPASS_ASSIGN_OR_RETURN(source, open_weight_files(options.model_dir));
  }
  ONEPASS_ASSIGN_OR_RETURN(DecoderWeights weights,
                           load_decoder_weights(config, std::move(source), stream, options.loading));
  return std::unique_ptr<Decoder>(new Decoder(std::move(config), std::move(weights)));
}

Decoder::Decoder(ModelConfig config, DecoderWeights weights)
    : config_(std::move(config)), weights_(std::move(weights)) {
  for (int index = 0; index < config_.num_layers; ++index) {
    const int window = config_.sliding_windows[index];
    attention_layers_.push_back({.index = index,
                                 .num_heads = config_.num_heads,
                                 .num_kv_heads = config_.num_kv_heads,
                                 .head_dim = config_.head_dim,
                                 .head_dim_v = config_.head_dim,
                                 .softmax_scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                                 .window_left = window > 0 ? window - 1 : -1,
                                 .rotary_dim = config_.head_dim,
                                 .rope_inv_freq = weights_.rope_inv_freq,
                                 .rope_attention_factor = config_.rope_attention_factor,
                                 .q_norm = weights_.layers[index].q_norm.data,
                                 .k_norm = weights_.layers[index].k_norm.data,
                                 .qk_norm_eps = config_.rms_norm_eps});
  }
}

int64_t Decoder::num_parameters() const {
  int64_t count = weights_.embedding.rows() * weights_.embedding.cols() + weights_.final_norm.size;
  if (!config_.tie_word_embeddings) count += weights_.lm_head.rows() * weights_.lm_head.cols();
  for (const LayerWeights& layer : weights_.layers) {
    for (const Linear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      count += linear->weight.rows() * linear->weight.cols() + linear->bias.size;
    }
    for (const auto* norm : {&layer.input_norm, &layer.q_norm, &layer.k_norm, &layer.post_attention_norm}) {
      count += norm->size;
    }
  }
  return count;
}

int64_t Decoder::weight_bytes_per_step() const {
  int64_t bytes = weights_.lm_head.size_bytes();
  for (const LayerWeights& layer : weights_.layers) {
    for (const Linear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      bytes += linear->weight.size_bytes();
  }
  return bytes;
}

double Decoder::flops_per_token() const {
  double flops = 0.0;
  for (const LayerWeights& layer : weights_.layers) {
    for (const Linear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      flops += 2.0 * static_cast<double>(linear->weight.rows()) * static_cast<double>(linear->weight.cols());
    }
  }
  return flops;
}

namespace {

struct Shape {
  DeviceBuffer DecoderWorkspace::*buffer;
  int64_t rows;
  int64_t cols;
  DType dtype;

  int64_t bytes() const { return rows * cols * static_cast<int64_t>(size_of(dtype)); }
};

std::array<Shape, 8> workspace_shapes(const ModelConfig& config, const DecoderWorkspace::Limits& limits, DType dtype) {
  using Workspace = DecoderWorkspace;
  const int64_t head_dim = config.head_dim, tokens = limits.max_tokens, outputs = limits.max_outputs;
  const int64_t q_size = config.num_heads * head_dim, kv_size = config.num_kv_heads * head_dim;
  return {{{&Workspace::hidden, tokens, config.hidden_size, DType::kF32},
           {&Workspace::normed, tokens, config.hidden_size, dtype},
           {&Workspace::qkv, tokens, q_size + 2 * kv_size, dtype},
           {&Workspace::attention, tokens, q_size, dtype},
           {&Workspace::gate_up, tokens, int64_t{2} * config.intermediate_size, dtype},
           {&Workspace::inner, tokens, config.intermediate_size, dtype},
           {&Workspace::last_hidden, outputs, config.hidden_size, DType::kF32},
           {&Workspace::last_attention, outputs, q_size, dtype}}};
}

}  // namespace

StatusOr<DecoderWorkspace> DecoderWorkspace::create(const ModelConfig& config, const Limits& limits,
                                                    DType activation_dtype, const Device& device) {
  DecoderWorkspace workspace;
  workspace.limits = limits;
  for (const Shape& shape : workspace_shapes(config, limits, activation_dtype)) {
    ONEPASS_ASSIGN_OR_RETURN(workspace.*shape.buffer,
                             DeviceBuffer::allocate(static_cast<size_t>(shape.bytes()), device));
  }
  return workspace;
}

int64_t DecoderWorkspace::size_bytes(const ModelConfig& config, const Limits& limits, DType activation_dtype) {
  int64_t bytes = 0;
  for (const Shape& shape : workspace_shapes(config, limits, activation_dtype)) bytes += shape.bytes();
  return bytes;
}

}  // namespace onepass
