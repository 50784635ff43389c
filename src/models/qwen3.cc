// Qwen3 (Yang et al. 2025): an RMS norm of each head of Q and K.
#include "models/architecture.h"

namespace onepass {

Status configure_qwen3(const JsonReader& json, ModelConfig& config) {
  config.qk_norm = true;
  ONEPASS_ASSIGN_OR_RETURN(config.qkv_bias, json.optional_bool("attention_bias", false));
  config.o_bias = config.qkv_bias;
  return configure_window_layers(json, config);
}

}  // namespace onepass
