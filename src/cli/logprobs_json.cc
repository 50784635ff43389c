#include "cli/logprobs_json.h"

namespace onepass {

nlohmann::json logprobs_json(const Tokenizer& tokenizer, const std::vector<SampledToken>& tokens) {
  // A token may be part of a character: its text is then shown with replacement characters, beside its exact id.
  const auto entry = [&](int32_t token, float logprob) {
    return nlohmann::json{{"token_id", token}, {"token", tokenizer.decode({&token, 1})}, {"logprob", logprob}};
  };
  nlohmann::json list = nlohmann::json::array();
  for (const SampledToken& token : tokens) {
    nlohmann::json item = entry(token.token, token.logprob);
    item["top_logprobs"] = nlohmann::json::array();
    for (const TokenLogprob& top : token.top) item["top_logprobs"].push_back(entry(top.token, top.logprob));
    list.push_back(std::move(item));
  }
  return list;
}

}  // namespace onepass
