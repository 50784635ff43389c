#include "models/generation_config.h"

#include <limits>

#include "models/json_reader.h"

namespace onepass {

StatusOr<GenerationConfig> GenerationConfig::load(const std::string& model_dir) {
  GenerationConfig config;
  const auto json = JsonReader::open(model_dir + "/generation_config.json");
  if (absl::IsNotFound(json.status())) return config;
  ONEPASS_RETURN_IF_ERROR(json.status());
  constexpr double kLargest = std::numeric_limits<float>::max();
  const auto number = [&](const char* key, double low, double high, std::optional<float>& field) {
    if (!json->has(key)) return ok_status();
    const auto value = json->required_number(key, low, high);
    if (value.ok()) field = static_cast<float>(*value);
    return value.status();
  };
  ONEPASS_RETURN_IF_ERROR(number("temperature", 0, kLargest, config.temperature));
  ONEPASS_RETURN_IF_ERROR(number("top_p", 0, 1, config.top_p));
  ONEPASS_RETURN_IF_ERROR(number("min_p", 0, 1, config.min_p));
  ONEPASS_RETURN_IF_ERROR(number("repetition_penalty", 0.01, 100, config.repetition_penalty));
  if (json->has("top_k")) {
    ONEPASS_ASSIGN_OR_RETURN(config.top_k, json->required_int("top_k", 0, INT32_MAX));
  }
  if (json->has("do_sample")) {
    ONEPASS_ASSIGN_OR_RETURN(config.do_sample, json->optional_bool("do_sample", true));
  }
  ONEPASS_ASSIGN_OR_RETURN(config.eos_token_ids, json->optional_ids("eos_token_id"));
  return config;
}

}  // namespace onepass
