// onepass tokenize: text to token ids, ids to text, conversations to prompts.
#include <cstdio>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "base/mapped_file.h"
#include "cli/command.h"
#include "cli/options.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace onepass {
namespace {

using nlohmann::ordered_json;

struct TokenizeOptions {
  std::string model_dir;
  std::string text, file, chat_file, tools_file;
  std::vector<int32_t> decode;
  std::vector<std::string> variables;
  bool has_text = false;
  bool no_special_tokens = false, no_generation_prompt = false, skip_special_tokens = false, json = false;
};

StatusOr<ordered_json> read_json(const std::string& path) {
  ONEPASS_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  ONEPASS_RETURN_IF_ERROR(parse_json(path, text).status());
  return ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);  // again, in the order of its keys
}

StatusOr<std::string> render_chat(const TokenizeOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(const std::unique_ptr<ChatTemplate> chat, ChatTemplate::load(options.model_dir));
  if (chat == nullptr) {
    return invalid_argument(options.model_dir,
                            ": expected a chat template (chat_template.jinja or tokenizer_config.json), found none");
  }
  ChatTemplate::Input input{.add_generation_prompt = !options.no_generation_prompt,
                            .variables = ordered_json::object()};
  ONEPASS_ASSIGN_OR_RETURN(input.messages, read_json(options.chat_file));
  if (!input.messages.is_array()) return invalid_argument(options.chat_file, ": expected a list of messages");
  if (!options.tools_file.empty()) {
    ONEPASS_ASSIGN_OR_RETURN(input.tools, read_json(options.tools_file));
    if (!input.tools.is_array()) return invalid_argument(options.tools_file, ": expected a list of tools");
  }
  for (const std::string& variable : options.variables) {
    const size_t equals = variable.find('=');
    // A value is JSON (true, 3, "x") where it parses as such, and a string otherwise.
    const std::string value = variable.substr(equals + 1);
    const ordered_json parsed = ordered_json::parse(value, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_structured()) ONEPASS_RETURN_IF_ERROR(parse_json("--var", value).status());  // for its limits
    input.variables[variable.substr(0, equals)] = parsed.is_discarded() ? ordered_json(value) : parsed;
  }
  return chat->apply(input);
}

void print_json(const ordered_json& value) {
  std::printf("%s\n", value.dump(-1, ' ', false, ordered_json::error_handler_t::replace).c_str());
}

// A text may hold a zero byte.
void print_line(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::printf("\n");
}

Status run(const TokenizeOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::load(options.model_dir));
  if (!options.decode.empty()) {
    for (int32_t id : options.decode) {
      if (!tokenizer->id_to_token(id)) {
        return invalid_argument("token id: expected 0 to ", tokenizer->vocab_size() - 1, ", found ", id);
      }
    }
    const std::string text = tokenizer->decode(options.decode, options.skip_special_tokens);
    if (options.json) {
      print_json({{"token_ids", options.decode}, {"text", text}});
    } else {
      print_line(text);
    }
    return ok_status();
  }
  std::string text = options.text;
  bool add_special_tokens = !options.no_special_tokens;
  if (!options.chat_file.empty()) {
    ONEPASS_ASSIGN_OR_RETURN(text, render_chat(options));
    add_special_tokens = false;  // the template writes them
  } else if (!options.file.empty()) {
    ONEPASS_ASSIGN_OR_RETURN(text, read_text_input(options.file));
  } else if (!options.has_text) {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  }
  ONEPASS_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                           tokenizer->encode(text, {.add_special_tokens = add_special_tokens}));
  if (options.json) {
    ordered_json tokens = ordered_json::array();
    for (int32_t id : ids) tokens.push_back(tokenizer->id_to_token(id).value_or(""));
    print_json({{"text", text}, {"token_ids", ids}, {"tokens", tokens}});
    return ok_status();
  }
  if (!options.chat_file.empty()) print_line(text);
  for (size_t i = 0; i < ids.size(); ++i) std::printf("%s%d", i > 0 ? "," : "", ids[i]);
  std::printf("\n");
  std::fprintf(stderr, "%zu tokens\n", ids.size());
  return ok_status();
}

}  // namespace

void add_tokenize_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("tokenize", "Encode a text, decode token ids, apply a chat template");
  auto options = std::make_shared<TokenizeOptions>();
  command->add_option("--model", options->model_dir, "Hugging Face model folder")->required();
  auto* text =
      command->add_option("--text", options->text, "the text to encode (standard input when nothing is named)");
  auto* file = command->add_option("--file", options->file, "encode a file, or what a pipe brings")->excludes(text);
  auto* decode = add_token_ids(*command, "--decode", options->decode, "token ids to decode, separated by commas")
                     ->excludes(text)
                     ->excludes(file);
  auto* chat = command
                   ->add_option("--chat", options->chat_file,
                                "a JSON file with a list of messages, put through the chat template")
                   ->excludes(text)
                   ->excludes(file)
                   ->excludes(decode);
  command->add_option("--tools", options->tools_file, "a JSON file with a list of tools for the template")->needs(chat);
  command->add_option("--var", options->variables, "NAME=VALUE: a variable for the template; may be given again")
      ->check(
          [](const std::string& variable) {
            return variable.find('=') != std::string::npos ? "" : "expected NAME=VALUE, found " + variable;
          },
          "")
      ->allow_extra_args(false)
      ->needs(chat);
  command->add_flag("--no-generation-prompt", options->no_generation_prompt, "end after the last message")->needs(chat);
  command->add_flag("--no-special-tokens", options->no_special_tokens, "do not add a BOS and its kin")
      ->excludes(decode)
      ->excludes(chat);
  command->add_flag("--skip-special-tokens", options->skip_special_tokens, "leave special tokens out of decoded text")
      ->needs(decode);
  command->add_flag("--json", options->json, "one JSON object: ids, tokens and text");
  command->callback([options, text, &action] {
    options->has_text = text->count() > 0;
    action = [options] { return run(*options); };
  });
}

}  // namespace onepass
