// Llama 2, 3, 3.1 and 3.2 (Touvron et al. 2023, Dubey et al. 2024): the decoder as it is, with optional biases.
#include "models/architecture.h"

namespace onepass {

Status configure_llama(const JsonReader& json, ModelConfig& config) {
  ONEPASS_ASSIGN_OR_RETURN(config.qkv_bias, json.optional_bool("attention_bias", false));
  config.o_bias = config.qkv_bias;
  ONEPASS_ASSIGN_OR_RETURN(config.mlp_bias, json.optional_bool("mlp_bias", false));
  // The share of each matrix product that one of so many devices does: the same sums in another order.
  ONEPASS_ASSIGN_OR_RETURN(const int64_t shares, json.optional_int("pretraining_tp", 1, INT32_MAX, 1));
  if (shares != 1) return json.error("pretraining_tp", "1");
  return expect_layer_types(json, config, "full_attention");
}

}  // namespace onepass
