// A model's chat template: a conversation to the text that the model was trained on.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/status.h"

namespace onepass {

namespace jinja {
struct Statement;
}

// Renders templates as transformers' apply_chat_template does: the Jinja language (src/tokenizer/jinja_*.h says which
// part of it), trim_blocks and lstrip_blocks on, loop controls, tojson, raise_exception and strftime_now. Immutable;
// any thread may use it.
class ChatTemplate {
 public:
  // What the template sees. Messages and tools keep the order of their keys.
  struct Input {
    nlohmann::ordered_json messages;
    nlohmann::ordered_json tools;  // null: none
    bool add_generation_prompt = true;
    nlohmann::ordered_json variables;  // an object with more of them (enable_thinking, say); null: none
  };

  // DIR/chat_template.jinja, or chat_template in DIR/tokenizer_config.json: a string, or a list of named ones of which
  // "tool_use" serves conversations with tools and "default" the others. Null when the folder has none.
  static StatusOr<std::unique_ptr<ChatTemplate>> load(const std::string& model_dir);

  // From the text itself; `special_tokens` ("bos_token": "<s>", ...) are variables of every rendering.
  static StatusOr<std::unique_ptr<ChatTemplate>> parse(const std::string& source,
                                                       nlohmann::ordered_json special_tokens);

  ~ChatTemplate();

  // An error is the template's own (raise_exception), or names the line and what is wrong with it.
  StatusOr<std::string> apply(const Input& input) const;

 private:
  ChatTemplate();

  struct Compiled;
  std::unique_ptr<Compiled> default_;
  std::unique_ptr<Compiled> tool_use_;  // null: the default serves tools too
  nlohmann::ordered_json special_tokens_;
};

}  // namespace onepass
