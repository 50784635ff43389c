#include "models/model_config.h"

#include <algorithm>

#include "models/architecture.h"
#include "models/generation_config.h"
#include "models/json_reader.h"
#include "models/rope_scaling.h"

namespace onepass {
namespace {

// Larger than any model's, small enough that products of two fit 64 bits.
constexpr int64_t kMaxSize = int64_t{1} << 24;

StatusOr<const Architecture*> find_architecture(const JsonReader& json) {
  const nlohmann::json& names = json.value("architectures");
  if (!names.is_array() || names.size() != 1 || !names[0].is_string()) {
    return json.error("architectures", "a list with one name");
  }
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == names[0].get<std::string>()) return &architecture;
    known += str_cat(known.empty() ? "" : ", ", architecture.name);
  }
  return json.error("architectures", "one of " + known);
}

Status read_common(const JsonReader& json, ModelConfig& config) {
  const auto size = [&](const char* key, int& field) {
    const auto value = json.required_int(key, 1, kMaxSize);
    if (value.ok()) field = static_cast<int>(*value);
    return value.status();
  };
  ONEPASS_RETURN_IF_ERROR(size("vocab_size", config.vocab_size));
  ONEPASS_RETURN_IF_ERROR(size("hidden_size", config.hidden_size));
  ONEPASS_RETURN_IF_ERROR(size("intermediate_size", config.intermediate_size));
  ONEPASS_ASSIGN_OR_RETURN(config.num_layers, json.required_int("num_hidden_layers", 1, 4096));
  ONEPASS_ASSIGN_OR_RETURN(config.num_heads, json.required_int("num_attention_heads", 1, 65536));
  ONEPASS_ASSIGN_OR_RETURN(config.num_kv_heads, json.optional_int("num_key_value_heads", 1, 65536, config.num_heads));
  if (config.num_heads % config.num_kv_heads != 0) {
    return json.error("num_key_value_heads", str_cat("a divisor of num_attention_heads = ", config.num_heads));
  }
  if (!json.has("head_dim") && config.hidden_size % config.num_heads != 0) {
    return json.error("hidden_size", str_cat("a multiple of num_attention_heads = ", config.num_heads));
  }
  ONEPASS_ASSIGN_OR_RETURN(config.head_dim,
                           json.optional_int("head_dim", 1, 65536, config.hidden_size / config.num_heads));
  ONEPASS_ASSIGN_OR_RETURN(config.max_position_embeddings,
                           json.required_int("max_position_embeddings", 1, int64_t{1} << 30));
  ONEPASS_ASSIGN_OR_RETURN(config.rms_norm_eps, json.required_number("rms_norm_eps", 0, 1));
  ONEPASS_ASSIGN_OR_RETURN(config.tie_word_embeddings, json.optional_bool("tie_word_embeddings", false));
  ONEPASS_ASSIGN_OR_RETURN(const std::string activation, json.optional_string("hidden_act", "silu"));
  if (activation != "silu") return json.error("hidden_act", "silu");
  ONEPASS_ASSIGN_OR_RETURN(std::string dtype, json.optional_string("torch_dtype", "bfloat16"));
  ONEPASS_ASSIGN_OR_RETURN(dtype, json.optional_string("dtype", dtype));
  const auto parsed = parse_float_dtype(dtype);
  if (!parsed.ok()) return annotate(parsed.status(), json.where());
  config.dtype = *parsed;
  config.sliding_windows.assign(config.num_layers, 0);
  if (json.has("quantization_config")) {
    return unimplemented(
        json.where(),
        ": quantization_config: expected weights in float32, float16 or bfloat16, found a quantised model");
  }
  return ok_status();
}

// The list "layer_types", of a length that was checked.
StatusOr<const nlohmann::json*> read_layer_types(const JsonReader& json, const ModelConfig& config) {
  const nlohmann::json& types = json.value("layer_types");
  if (!types.is_array() || types.size() != static_cast<size_t>(config.num_layers)) {
    return json.error("layer_types", str_cat("a list of ", config.num_layers, " types"));
  }
  return &types;
}

}  // namespace

Status expect_layer_types(const JsonReader& json, const ModelConfig& config, const std::string& type) {
  if (!json.has("layer_types")) return ok_status();
  ONEPASS_ASSIGN_OR_RETURN(const nlohmann::json* types, read_layer_types(json, config));
  for (const nlohmann::json& found : *types) {
    if (found != type) return json.error("layer_types", type + " for each layer");
  }
  return ok_status();
}

Status configure_window_layers(const JsonReader& json, ModelConfig& config) {
  ONEPASS_ASSIGN_OR_RETURN(const bool use, json.optional_bool("use_sliding_window", false));
  const int64_t fallback = json.contains("sliding_window") ? 0 : 4096;  // null is no window, whatever the flag says
  ONEPASS_ASSIGN_OR_RETURN(const int64_t window, json.optional_int("sliding_window", 1, INT32_MAX, fallback));
  ONEPASS_ASSIGN_OR_RETURN(const int64_t first, json.optional_int("max_window_layers", 0, INT32_MAX, 28));
  if (!use) return expect_layer_types(json, config, "full_attention");
  for (int layer = 0; layer < config.num_layers; ++layer) {
    config.sliding_windows[layer] = layer >= first ? static_cast<int>(window) : 0;
  }
  if (!json.has("layer_types")) return ok_status();
  ONEPASS_ASSIGN_OR_RETURN(const nlohmann::json* types, read_layer_types(json, config));
  for (int layer = 0; layer < config.num_layers; ++layer) {
    if ((*types)[layer] == "sliding_attention") {
      config.sliding_windows[layer] = static_cast<int>(window);
    } else if ((*types)[layer] == "full_attention") {
      config.sliding_windows[layer] = 0;
    } else {
      return json.error("layer_types", "full_attention or sliding_attention for each layer");
    }
  }
  return ok_status();
}

StatusOr<ModelConfig> load_model_config(const std::string& model_dir) {
  ONEPASS_ASSIGN_OR_RETURN(const JsonReader json, JsonReader::open(model_dir + "/config.json"));
  ModelConfig config;
  ONEPASS_ASSIGN_OR_RETURN(const Architecture* architecture, find_architecture(json));
  config.architecture = std::string(architecture->name);
  ONEPASS_RETURN_IF_ERROR(read_common(json, config));
  ONEPASS_RETURN_IF_ERROR(configure_rope(json, config));
  ONEPASS_RETURN_IF_ERROR(architecture->configure(json, config));
  ONEPASS_ASSIGN_OR_RETURN(config.eos_token_ids, json.optional_ids("eos_token_id"));
  ONEPASS_ASSIGN_OR_RETURN(const GenerationConfig generation, GenerationConfig::load(model_dir));
  if (!generation.eos_token_ids.empty()) config.eos_token_ids = generation.eos_token_ids;
  for (int32_t token : config.eos_token_ids) {
    if (token >= config.vocab_size) {
      return invalid_argument(model_dir, ": eos_token_id: expected less than vocab_size = ", config.vocab_size,
                              ", found ", token);
    }
  }
  return config;
}

}  // namespace onepass
