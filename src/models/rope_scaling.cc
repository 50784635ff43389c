#include "models/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace onepass {
namespace {

constexpr double kLargest = 1e12;

// Llama 3.1: long wavelengths are stretched by `factor`, short ones are not, those between by a part.
Status scale_llama3(const JsonReader& scaling, std::vector<double>& inv_freq) {
  ONEPASS_ASSIGN_OR_RETURN(const double factor, scaling.required_number("factor", 1, kLargest));
  ONEPASS_ASSIGN_OR_RETURN(const double low, scaling.required_number("low_freq_factor", 1e-6, kLargest));
  ONEPASS_ASSIGN_OR_RETURN(const double high, scaling.required_number("high_freq_factor", 1e-6, kLargest));
  ONEPASS_ASSIGN_OR_RETURN(const double context,
                           scaling.required_number("original_max_position_embeddings", 1, kLargest));
  if (high <= low) return scaling.error("high_freq_factor", "more than low_freq_factor");
  for (double& frequency : inv_freq) {
    const double wavelength = 2 * std::numbers::pi / frequency;
    if (wavelength < context / high) continue;
    if (wavelength > context / low) {
      frequency /= factor;
    } else {
      const double smooth = (context / wavelength - low) / (high - low);
      frequency = (1 - smooth) * frequency / factor + smooth * frequency;
    }
  }
  return ok_status();
}

// YaRN: dimensions that turn less than beta_slow times over the original context are interpolated, those that turn more
// than beta_fast times are kept, with a ramp between; the attention's temperature changes with the factor.
Status scale_yarn(const JsonReader& scaling, double theta, const ModelConfig& config, std::vector<double>& inv_freq,
                  float& attention_factor) {
  ONEPASS_ASSIGN_OR_RETURN(const double context, scaling.optional_number("original_max_position_embeddings", 1,
                                                                         kLargest, config.max_position_embeddings));
  ONEPASS_ASSIGN_OR_RETURN(const double factor,
                           scaling.optional_number("factor", 1e-6, kLargest, config.max_position_embeddings / context));
  ONEPASS_ASSIGN_OR_RETURN(const double beta_fast, scaling.optional_number("beta_fast", 1e-6, kLargest, 32));
  ONEPASS_ASSIGN_OR_RETURN(const double beta_slow, scaling.optional_number("beta_slow", 1e-6, kLargest, 1));
  ONEPASS_ASSIGN_OR_RETURN(const bool truncate, scaling.optional_bool("truncate", true));
  ONEPASS_ASSIGN_OR_RETURN(const double mscale, scaling.optional_number("mscale", 0, kLargest, 0));
  ONEPASS_ASSIGN_OR_RETURN(const double mscale_all_dim, scaling.optional_number("mscale_all_dim", 0, kLargest, 0));
  const auto temperature = [&](double scale) { return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0; };
  const double inferred =
      mscale > 0 && mscale_all_dim > 0 ? temperature(mscale) / temperature(mscale_all_dim) : temperature(1);
  ONEPASS_ASSIGN_OR_RETURN(const double given, scaling.optional_number("attention_factor", 1e-6, kLargest, inferred));
  attention_factor = static_cast<float>(given);

  const double dim = config.head_dim;
  const auto dimension_of = [&](double rotations) {
    return dim * std::log(context / (rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  double low = dimension_of(beta_fast), high = dimension_of(beta_slow);
  if (truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const double interpolated = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inv_freq[i] = inv_freq[i] / factor * interpolated + inv_freq[i] * (1 - interpolated);
  }
  return ok_status();
}

// No architecture of this engine rotates only a part of each head.
Status check_whole_rotation(const JsonReader& json) {
  ONEPASS_ASSIGN_OR_RETURN(const double factor, json.optional_number("partial_rotary_factor", 0, 1, 1));
  return factor == 1 ? ok_status() : json.error("partial_rotary_factor", "1");
}

// The part of rope_scaling that depends on its type.
Status scale(const JsonReader& scaling, const std::string& type, double theta, ModelConfig& config,
             std::vector<double>& inv_freq) {
  if (type == "default") return ok_status();
  if (type == "llama3") return scale_llama3(scaling, inv_freq);
  if (type == "yarn") return scale_yarn(scaling, theta, config, inv_freq, config.rope_attention_factor);
  if (type == "linear") {
    ONEPASS_ASSIGN_OR_RETURN(const double factor, scaling.required_number("factor", 1e-6, kLargest));
    for (double& frequency : inv_freq) frequency /= factor;
    return ok_status();
  }
  // Changes the frequencies of sequences longer than max_position_embeddings alone, and this engine computes none.
  if (type == "dynamic") return scaling.required_number("factor", 1, kLargest).status();
  return unimplemented(scaling.where(), ": rope_type: expected default, linear, dynamic, llama3 or yarn, found \"",
                       printable(type), "\"");
}

}  // namespace

Status configure_rope(const JsonReader& json, ModelConfig& config) {
  ONEPASS_ASSIGN_OR_RETURN(const auto parameters, json.optional_object("rope_parameters"));
  ONEPASS_ASSIGN_OR_RETURN(const auto old_scaling, json.optional_object("rope_scaling"));
  const std::optional<JsonReader>& scaling = parameters ? parameters : old_scaling;
  ONEPASS_ASSIGN_OR_RETURN(double theta, json.optional_number("rope_theta", 1.001, kLargest, 10000.0));
  std::string type = "default";
  if (scaling) {
    ONEPASS_ASSIGN_OR_RETURN(theta, scaling->optional_number("rope_theta", 1.001, kLargest, theta));
    ONEPASS_ASSIGN_OR_RETURN(type, scaling->optional_string("type", type));  // the spelling of old folders
    ONEPASS_ASSIGN_OR_RETURN(type, scaling->optional_string("rope_type", type));
    ONEPASS_RETURN_IF_ERROR(check_whole_rotation(*scaling));
  }
  ONEPASS_RETURN_IF_ERROR(check_whole_rotation(json));
  if (config.head_dim % 2 != 0) return json.error("head_dim", "an even number (rotary embedding turns pairs)");
  std::vector<double> inv_freq(config.head_dim / 2);
  for (size_t i = 0; i < inv_freq.size(); ++i)
    inv_freq[i] = std::pow(theta, -2.0 * static_cast<double>(i) / config.head_dim);
  if (scaling) ONEPASS_RETURN_IF_ERROR(scale(*scaling, type, theta, config, inv_freq));
  config.rope_inv_freq = std::move(inv_freq);
  return ok_status();
}

}  // namespace onepass
