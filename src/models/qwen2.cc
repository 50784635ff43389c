// Qwen2 and Qwen2.5 (Yang et al. 2024): biases of Q, K and V; some layers may have a sliding window.
#include "models/architecture.h"

namespace onepass {

Status configure_qwen2(const JsonReader& json, ModelConfig& config) {
  config.qkv_bias = true;
  return configure_window_layers(json, config);
}

}  // namespace onepass
