#include "models/decoder.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "kernels/activation.h"
#include "kernels/embedding.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

namespace onepass {

struct Decoder::Step {
  const ForwardInput& input;
  AttentionBackend& backend;
  DecoderWorkspace& workspace;
  const Stream& stream;
  int num_rows;  // rows of the residual stream: the tokens, and in the end those whose logits are wanted

  float* hidden() { return workspace.hidden.as<float>(); }
  float* normed() { return workspace.normed.as<float>(); }

  void norm(const std::vector<float>& weight, float eps) {
    const int64_t cols = static_cast<int64_t>(weight.size());
    run_rms_norm({.x = hidden(),
                  .x_row_stride = cols,
                  .weight = weight.data(),
                  .eps = eps,
                  .out = normed(),
                  .out_row_stride = cols,
                  .rows = num_rows,
                  .cols = cols},
                 stream);
  }

  void linear(const float* x, const WeightMatrix& weight, const float* bias, float* y, bool accumulate = false) {
    run_linear({.x = x,
                .x_row_stride = weight.cols(),
                .num_rows = num_rows,
                .weight = &weight,
                .bias = bias,
                .y = y,
                .y_row_stride = weight.rows(),
                .accumulate = accumulate},
               workspace.linear, stream);
  }

  // Keeps the rows whose logits are wanted, of the residual stream and of the attention's output.
  void keep_output_rows(int64_t hidden_size, int64_t attention_size) {
    if (input.num_output_rows == num_rows) return;
    float* const attention = workspace.attention.as<float>();
    for (int i = 0; i < input.num_output_rows; ++i) {
      const int64_t row = input.output_rows[i];
      std::copy_n(hidden() + row * hidden_size, hidden_size, hidden() + i * hidden_size);
      std::copy_n(attention + row * attention_size, attention_size, attention + i * attention_size);
    }
    num_rows = input.num_output_rows;
  }
};

void Decoder::forward(const ForwardInput& input, AttentionBackend& backend, float* logits, DecoderWorkspace& workspace,
                      const Stream& stream) const {
  ONEPASS_CHECK_LE(input.num_tokens, workspace.max_tokens);
  Step step{input, backend, workspace, stream, input.num_tokens};
  run_embedding({.ids = input.input_ids,
                 .num_tokens = input.num_tokens,
                 .table = &weights_.embedding,
                 .out = step.hidden(),
                 .out_row_stride = config_.hidden_size},
                stream);
  for (int index = 0; index < config_.num_layers; ++index) {
    attention_block(index, step);
    mlp_block(weights_.layers[index], step);
  }
  step.norm(weights_.final_norm, config_.rms_norm_eps);
  step.linear(step.normed(), weights_.lm_head, nullptr, logits);
}

// hidden += o(attention(rope(qk_norm(qkv(norm(hidden))))))
void Decoder::attention_block(int index, Step& step) const {
  const LayerWeights& layer = weights_.layers[index];
  const int64_t head_dim = config_.head_dim;
  const int64_t q_size = config_.num_heads * head_dim, kv_size = config_.num_kv_heads * head_dim;
  const int64_t row_stride = q_size + 2 * kv_size;
  float* const q = step.workspace.qkv.as<float>();
  float* const k = q + q_size;
  float* const v = k + kv_size;
  float* const out = step.workspace.attention.as<float>();

  step.norm(layer.input_norm, config_.rms_norm_eps);
  step.linear(step.normed(), layer.qkv.weight, layer.qkv.bias_data(), q);

  const auto norm_and_rotate = [&](float* x, int num_heads, const std::vector<float>& norm) {
    if (!norm.empty()) {
      run_rms_norm({.x = x,
                    .x_group_stride = row_stride,
                    .x_row_stride = head_dim,
                    .weight = norm.data(),
                    .eps = config_.rms_norm_eps,
                    .out = x,
                    .out_group_stride = row_stride,
                    .out_row_stride = head_dim,
                    .num_groups = step.num_rows,
                    .rows = num_heads,
                    .cols = head_dim},
                   step.stream);
    }
    run_rope({.x = x,
              .row_stride = row_stride,
              .num_heads = num_heads,
              .head_dim = head_dim,
              .rotary_dim = head_dim,
              .num_tokens = step.num_rows,
              .positions = step.input.positions,
              .inv_freq = config_.rope_inv_freq.data(),
              .attention_factor = config_.rope_attention_factor},
             step.stream);
  };
  norm_and_rotate(q, config_.num_heads, layer.q_norm);
  norm_and_rotate(k, config_.num_kv_heads, layer.k_norm);

  step.backend.run(attention_layers_[index],
                   {.q = q,
                    .q_row_stride = row_stride,
                    .k = k,
                    .k_row_stride = row_stride,
                    .v = v,
                    .v_row_stride = row_stride,
                    .out = out,
                    .out_row_stride = q_size},
                   step.stream);
  // After the last layer's attention, the other rows' work is done: their K and V are stored.
  if (index + 1 == config_.num_layers) step.keep_output_rows(config_.hidden_size, q_size);
  step.linear(out, layer.o.weight, layer.o.bias_data(), step.hidden(), /*accumulate=*/true);
}

// hidden += down(silu(gate) * up), where [gate, up] = gate_up(norm(hidden))
void Decoder::mlp_block(const LayerWeights& layer, Step& step) const {
  float* const gate_up = step.workspace.gate_up.as<float>();
  float* const inner = step.workspace.inner.as<float>();
  step.norm(layer.post_attention_norm, config_.rms_norm_eps);
  step.linear(step.normed(), layer.gate_up.weight, layer.gate_up.bias_data(), gate_up);
  run_silu_and_mul({.gate_up = gate_up,
                    .gate_up_row_stride = 2 * config_.intermediate_size,
                    .out = inner,
                    .out_row_stride = config_.intermediate_size,
                    .rows = step.num_rows,
                    .cols = config_.intermediate_size},
                   step.stream);
  step.linear(inner, layer.down.weight, layer.down.bias_data(), step.hidden(), /*accumulate=*/true);
}

StatusOr<std::unique_ptr<Decoder>> Decoder::load(const Options& options, const Stream& stream) {
  ONEPASS_ASSIGN_OR_RETURN(ModelConfig config, load_model_config(options.model_dir));
  std::unique_ptr<WeightSource> source;
  if (options.dummy_weights) {
    source = make_random_weights(config.dtype, stream);
  } else {
    ONEPASS_ASSIGN_OR_RETURN(source, open_weight_files(options.model_dir));
  }
  ONEPASS_ASSIGN_OR_RETURN(DecoderWeights weights, load_decoder_weights(config, std::move(source)));
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
                                 .window_left = window > 0 ? window - 1 : -1});
  }
}

int64_t Decoder::num_parameters() const {
  int64_t count =
      weights_.embedding.rows() * weights_.embedding.cols() + static_cast<int64_t>(weights_.final_norm.size());
  if (!config_.tie_word_embeddings) count += weights_.lm_head.rows() * weights_.lm_head.cols();
  for (const LayerWeights& layer : weights_.layers) {
    for (const Linear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      count += linear->weight.rows() * linear->weight.cols() + static_cast<int64_t>(linear->bias.size());
    }
    for (const auto* norm : {&layer.input_norm, &layer.q_norm, &layer.k_norm, &layer.post_attention_norm}) {
      count += static_cast<int64_t>(norm->size());
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

// The columns of hidden, normed, qkv, attention, gate_up and inner.
std::array<int64_t, 6> workspace_columns(const ModelConfig& config) {
  const int64_t head_dim = config.head_dim;
  return {config.hidden_size,
          config.hidden_size,
          (config.num_heads + 2 * config.num_kv_heads) * head_dim,
          config.num_heads * head_dim,
          int64_t{2} * config.intermediate_size,
          config.intermediate_size};
}

int64_t workspace_bytes(int64_t columns, int max_tokens) {
  return columns * max_tokens * static_cast<int64_t>(sizeof(float));
}

}  // namespace

StatusOr<DecoderWorkspace> DecoderWorkspace::create(const ModelConfig& config, int max_tokens) {
  DecoderWorkspace workspace;
  workspace.max_tokens = max_tokens;
  const auto columns = workspace_columns(config);
  Buffer* const buffers[] = {&workspace.hidden,    &workspace.normed,  &workspace.qkv,
                             &workspace.attention, &workspace.gate_up, &workspace.inner};
  for (size_t i = 0; i < columns.size(); ++i) {
    ONEPASS_ASSIGN_OR_RETURN(*buffers[i],
                             Buffer::allocate(static_cast<size_t>(workspace_bytes(columns[i], max_tokens))));
  }
  return workspace;
}

int64_t DecoderWorkspace::size_bytes(const ModelConfig& config, int max_tokens) {
  int64_t bytes = 0;
  for (const int64_t columns : workspace_columns(config)) bytes += workspace_bytes(columns, max_tokens);
  return bytes;
}

}  // namespace onepass
