// The sampling defaults that a model folder carries: generation_config.json.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace onepass {

struct GenerationConfig {
  std::optional<bool> do_sample;
  std::optional<float> temperature;
  std::optional<int> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::vector<int32_t> eos_token_ids;

  // Reads DIR/generation_config.json; a folder without one has no defaults. An error names a value of the wrong type or
  // range.
  static StatusOr<GenerationConfig> load(const std::string& model_dir);
};

}  // namespace onepass
