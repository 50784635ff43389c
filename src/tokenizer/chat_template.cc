#include "tokenizer/chat_template.h"

#include "base/mapped_file.h"
#include "tokenizer/jinja_evaluator.h"
#include "tokenizer/jinja_parser.h"

namespace onepass {

using nlohmann::ordered_json;

struct ChatTemplate::Compiled {
  jinja::Body body;
};

namespace {

// The text of a token that tokenizer_config.json gives as a string or as an object with "content".
std::string token_text(const ordered_json& token) {
  if (token.is_string()) return token.get<std::string>();
  if (token.is_object() && token.contains("content") && token["content"].is_string()) return token["content"];
  return "";
}

ordered_json special_tokens(const ordered_json& config) {
  ordered_json tokens = ordered_json::object();
  for (const auto& [key, value] : config.items()) {
    if (key.ends_with("_token") && !token_text(value).empty()) tokens[key] = token_text(value);
  }
  return tokens;
}

}  // namespace

ChatTemplate::ChatTemplate() = default;
ChatTemplate::~ChatTemplate() = default;

StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::parse(const std::string& source, ordered_json special_tokens) {
  std::unique_ptr<ChatTemplate> result(new ChatTemplate());
  result->special_tokens_ = std::move(special_tokens);
  try {
    result->default_ = std::make_unique<Compiled>(Compiled{jinja::parse(source)});
  } catch (const jinja::Error& error) {
    return invalid_argument("chat template: ", error.what());
  }
  return result;
}

StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::load(const std::string& model_dir) {
  const std::string config_path = model_dir + "/tokenizer_config.json", file_path = model_dir + "/chat_template.jinja";
  ordered_json config = ordered_json::object();
  const auto config_text = read_text_file(config_path);
  if (config_text.ok()) {
    config = ordered_json::parse(*config_text, nullptr, /*allow_exceptions=*/false);
    if (!config.is_object()) return invalid_argument(config_path, ": expected a JSON object");
  } else if (!absl::IsNotFound(config_text.status())) {
    return config_text.status();
  }
  const auto compile = [&](const std::string& path,
                           const std::string& source) -> StatusOr<std::unique_ptr<ChatTemplate>> {
    auto result = parse(source, special_tokens(config));
    return result.ok() ? std::move(result) : annotate(result.status(), path);
  };
  const auto file_text = read_text_file(file_path);
  if (file_text.ok()) return compile(file_path, *file_text);
  if (!absl::IsNotFound(file_text.status())) return file_text.status();

  const ordered_json field = config.value("chat_template", ordered_json());
  if (field.is_null()) return std::unique_ptr<ChatTemplate>();
  if (field.is_string()) return compile(config_path, field.get<std::string>());
  if (!field.is_array()) return invalid_argument(config_path, ": chat_template: expected a string or a list");
  std::unique_ptr<ChatTemplate> by_default, tool_use;
  for (const ordered_json& entry : field) {
    const bool named = entry.is_object() && entry.contains("name") && entry["name"].is_string() &&
                       entry.contains("template") && entry["template"].is_string();
    if (!named) return invalid_argument(config_path, ": chat_template: expected entries with a name and a template");
    const std::string name = entry["name"];
    if (name != "default" && name != "tool_use") continue;
    ONEPASS_ASSIGN_OR_RETURN((name == "default" ? by_default : tool_use), compile(config_path, entry["template"]));
  }
  if (by_default == nullptr)
    return invalid_argument(config_path, ": chat_template: expected one named default, found none");
  if (tool_use != nullptr) by_default->tool_use_ = std::move(tool_use->default_);
  return by_default;
}

StatusOr<std::string> ChatTemplate::apply(const Input& input) const {
  const bool with_tools = input.tools.is_array() && !input.tools.empty();
  const Compiled& compiled = with_tools && tool_use_ != nullptr ? *tool_use_ : *default_;
  jinja::Dict variables;
  const auto add = [&](const ordered_json& object) {
    for (const auto& [name, value] : object.items()) assign(variables, name, jinja::Value::from_json(value));
  };
  add(special_tokens_);
  assign(variables, "messages", jinja::Value::from_json(input.messages));
  assign(variables, "tools", with_tools ? jinja::Value::from_json(input.tools) : jinja::Value(jinja::Value::None{}));
  assign(variables, "documents", jinja::Value(jinja::Value::None{}));
  assign(variables, "add_generation_prompt", input.add_generation_prompt);
  if (input.variables.is_object()) add(input.variables);
  try {
    return jinja::evaluate(compiled.body, variables);
  } catch (const jinja::Error& error) {
    return invalid_argument("chat template: ", error.what());
  }
}

}  // namespace onepass
