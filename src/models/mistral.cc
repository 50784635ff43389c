// Mistral (Jiang et al. 2023): a sliding window in every layer; null (none) since version 0.2.
#include "models/architecture.h"

namespace onepass {

Status configure_mistral(const JsonReader& json, ModelConfig& config) {
  const int64_t fallback = json.contains("sliding_window") ? 0 : 4096;  // transformers' default for a missing key
  ONEPASS_ASSIGN_OR_RETURN(const int64_t window, json.optional_int("sliding_window", 1, INT32_MAX, fallback));
  config.sliding_windows.assign(config.num_layers, static_cast<int>(window));
  return expect_layer_types(json, config, window > 0 ? "sliding_attention" : "full_attention");
}

}  // namespace onepass
