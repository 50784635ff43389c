// The frequencies of the rotary embedding, with the scalings that extend a model's context.
#pragma once

#include "models/json_reader.h"
#include "models/model_config.h"

namespace onepass {

// Sets rope_inv_freq and rope_attention_factor from rope_theta and rope_scaling (or from rope_parameters, as
// transformers 5 writes them). Types: default, linear (Chen et al. 2023), dynamic (NTK by parts of the sequence's
// length: within max_position_embeddings the same as default), llama3 (Llama 3.1), yarn (Peng et al. 2023); an unknown
// one is refused. REQUIRES: head_dim and max_position_embeddings are set.
Status configure_rope(const JsonReader& json, ModelConfig& config);

}  // namespace onepass
