// The architectures that this engine knows: a table, and for each one what it reads from config.json beyond what all
// share.
#pragma once

#include <span>
#include <string_view>

#include "models/json_reader.h"
#include "models/model_config.h"

namespace onepass {

struct Architecture {
  std::string_view name;  // in config.json's "architectures"
  // Fills in what this architecture adds; the common fields of `config` are set.
  Status (*configure)(const JsonReader& json, ModelConfig& config);
};

// Each in a file of its own.
Status configure_llama(const JsonReader& json, ModelConfig& config);
Status configure_mistral(const JsonReader& json, ModelConfig& config);
Status configure_qwen2(const JsonReader& json, ModelConfig& config);
Status configure_qwen3(const JsonReader& json, ModelConfig& config);

// Adding an architecture: its file, and a line here.
inline constexpr Architecture kArchitectures[] = {
    {"LlamaForCausalLM", configure_llama},
    {"MistralForCausalLM", configure_mistral},
    {"Qwen2ForCausalLM", configure_qwen2},
    {"Qwen3ForCausalLM", configure_qwen3},
};

// Refuses layer_types (a list of a type for each layer, or missing) of another type than `type`.
Status expect_layer_types(const JsonReader& json, const ModelConfig& config, const std::string& type);

// sliding_window, use_sliding_window, max_window_layers and layer_types as Qwen2 and Qwen3 read them.
Status configure_window_layers(const JsonReader& json, ModelConfig& config);

}  // namespace onepass
