// Log-probabilities as the JSON outputs show them.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "engine/sampler.h"
#include "tokenizer/tokenizer.h"

namespace onepass {

nlohmann::json logprobs_json(const Tokenizer& tokenizer, const std::vector<SampledToken>& tokens);

}  // namespace onepass
