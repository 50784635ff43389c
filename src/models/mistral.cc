// Mistral (Jiang et al. 2023): a sliding window in every layer; null since version 0.2.
#include "models/architecture.h"

namespace onepass {

Status configure_mistral(const JsonReader& json, ModelConfig& config) {
  ONEPASS_ASSIGN_OR_RETURN(const int64_t window, json.optional_int("sliding_window", 1, INT32_MAX, 0));
  config.sliding_windows.assign(config.num_layers, static_cast<int>(window));
  return ok_status();
}

}  // namespace onepass
