#include "cli/prompt_line.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "base/json.h"

namespace onepass {
namespace {

using nlohmann::json;

Status wrong_type(std::string_view key, const char* expected, const json& found) {
  return invalid_argument(key, ": expected ", expected, ", found ",
                          printable(found.dump(-1, ' ', false, json::error_handler_t::replace), 60));
}

Status read(std::string_view key, const json& value, float& out) {
  if (!value.is_number() || !std::isfinite(value.get<float>())) return wrong_type(key, "a number", value);
  out = value.get<float>();
  return ok_status();
}

Status read(std::string_view key, const json& value, double& out) {
  if (!value.is_number()) return wrong_type(key, "a number", value);
  out = value.get<double>();
  return ok_status();
}

Status read(std::string_view key, const json& value, bool& out) {
  if (!value.is_boolean()) return wrong_type(key, "true or false", value);
  out = value.get<bool>();
  return ok_status();
}

Status read(std::string_view key, const json& value, std::string& out) {
  if (!value.is_string()) return wrong_type(key, "a text", value);
  out = value.get<std::string>();
  return ok_status();
}

template <typename Integer>
requires std::is_integral_v<Integer> Status read(std::string_view key, const json& value, Integer& out) {
  const bool fits = value.is_number_unsigned()
                        ? value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<Integer>::max())
                        : value.is_number_integer() &&
                              value.get<int64_t>() >= static_cast<int64_t>(std::numeric_limits<Integer>::min());
  if (!fits) return wrong_type(key, "a whole number in range", value);
  out = value.get<Integer>();
  return ok_status();
}

template <typename Element>
Status read(std::string_view key, const json& value, std::vector<Element>& out) {
  if (!value.is_array()) return wrong_type(key, "a list", value);
  out.clear();
  for (const json& item : value) {
    Element element;
    ONEPASS_RETURN_IF_ERROR(read(key, item, element));
    out.push_back(std::move(element));
  }
  return ok_status();
}

Status read_stop(const json& value, std::vector<std::string>& out) {
  if (!value.is_string()) return read("stop", value, out);
  out = {value.get<std::string>()};
  return ok_status();
}

// vLLM's "all tokens" is -1.
Status read_top_k(const json& value, int& out) {
  ONEPASS_RETURN_IF_ERROR(read("top_k", value, out));
  if (out == -1) out = 0;
  return ok_status();
}

Status read_logit_bias(const json& value, std::vector<std::pair<int32_t, float>>& out) {
  if (!value.is_object()) return wrong_type("logit_bias", "an object of token ids", value);
  out.clear();
  for (const auto& [key, bias] : value.items()) {
    int32_t token = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc() || end != key.data() + key.size()) {
      return invalid_argument("logit_bias: expected a token id, found ", printable(key, 60));
    }
    float number = 0.0f;
    ONEPASS_RETURN_IF_ERROR(read("logit_bias", bias, number));
    out.emplace_back(token, number);
  }
  return ok_status();
}

// A value that is refused leaves the request as it is.
Status read_option(const std::string& key, const json& value, GenerateRequest& request, bool& is_known) {
  SamplingParams& s = request.sampling;
  is_known = true;
  if (key == "max_tokens" || key == "max_new_tokens") return read(key, value, s.max_new_tokens);
  if (key == "min_tokens" || key == "min_new_tokens") return read(key, value, s.min_new_tokens);
  if (key == "temperature") return read(key, value, s.temperature);
  if (key == "top_k") return read_top_k(value, s.top_k);
  if (key == "top_p") return read(key, value, s.top_p);
  if (key == "min_p") return read(key, value, s.min_p);
  if (key == "repetition_penalty") return read(key, value, s.repetition_penalty);
  if (key == "presence_penalty") return read(key, value, s.presence_penalty);
  if (key == "frequency_penalty") return read(key, value, s.frequency_penalty);
  if (key == "logit_bias") return read_logit_bias(value, s.logit_bias);
  if (key == "seed") return read(key, value, s.seed);
  if (key == "stop") return read_stop(value, s.stop);
  if (key == "stop_token_ids") return read(key, value, s.stop_token_ids);
  if (key == "include_stop_str_in_output") return read(key, value, s.include_stop_str_in_output);
  if (key == "ignore_eos") return read(key, value, s.ignore_eos);
  if (key == "logprobs") return read(key, value, s.logprobs);
  if (key == "n") return read(key, value, request.n);
  if (key == "best_of") return read(key, value, request.best_of);
  if (key == "priority") return read(key, value, request.priority);
  if (key == "cache_salt") return read(key, value, request.cache_salt);
  if (key == "timeout") return read(key, value, request.timeout_seconds);
  is_known = false;
  return ok_status();
}

}  // namespace

StatusOr<PromptLine> parse_prompt_line(std::string_view line, const TextModel& model, const SamplingParams& defaults) {
  ONEPASS_ASSIGN_OR_RETURN(const json value, parse_json("line", line));
  if (!value.is_object()) return wrong_type("line", "an object", value);
  PromptLine result;
  result.request.sampling = defaults;
  std::string input_key;
  const json* input = nullptr;
  for (const auto& [key, item] : value.items()) {
    if (key == "id") {
      result.id = item;
    } else if (key == "prompt" || key == "prompt_token_ids" || key == "messages") {
      if (item.is_null()) continue;
      if (input != nullptr) {
        return invalid_argument("expected either \"prompt\" or \"messages\", found \"", input_key, "\" and \"", key,
                                "\"");
      }
      input_key = key;
      input = &item;
    } else {
      bool is_known = false;
      const Status status = read_option(key, item, result.request, is_known);
      if (!is_known) return invalid_argument("unknown key: ", printable(key, 60));
      if (!item.is_null()) ONEPASS_RETURN_IF_ERROR(status);  // null leaves the option out
    }
  }
  if (input == nullptr) return invalid_argument("expected either \"prompt\" or \"messages\", found neither");
  if (input_key == "messages") {
    if (!input->is_array() || input->empty()) return wrong_type("messages", "a list of messages", *input);
    ONEPASS_ASSIGN_OR_RETURN(result.request.prompt, model.encode_chat(*input));
  } else if (input->is_array() || input_key == "prompt_token_ids") {
    ONEPASS_RETURN_IF_ERROR(read(input_key, *input, result.request.prompt));
  } else {
    if (!input->is_string()) return wrong_type("prompt", "a text or token ids", *input);
    const auto& text = input->get_ref<const std::string&>();
    if (text.empty()) return invalid_argument("prompt: expected text, found none");
    ONEPASS_ASSIGN_OR_RETURN(result.request.prompt, model.encode(text));
  }
  return result;
}

}  // namespace onepass
