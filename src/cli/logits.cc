// onepass logits: the logits of every position, for comparing a port with its original.
#include <algorithm>
#include <cstdio>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/text_model.h"
#include "models/safetensors.h"

namespace onepass {
namespace {

struct LogitsOptions {
  EngineOptions engine;
  std::vector<int32_t> input_ids;
  std::string prompt;
  std::string output;
};

Status run(const LogitsOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(ModelRunnerOptions runner_options, options.engine.runner_options());
  std::vector<int32_t> tokens = options.input_ids;
  if (!options.prompt.empty()) {
    ONEPASS_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::load(options.engine.model_dir()));
    ONEPASS_ASSIGN_OR_RETURN(tokens, tokenizer->encode(options.prompt, {.add_special_tokens = true}));
  }
  if (tokens.empty()) return invalid_argument("logits: expected a prompt of at least one token, found none");
  // All of a step's logits are wanted: a gigabyte of them at most, or nearly.
  runner_options.max_tokens_per_step = std::min(runner_options.max_tokens_per_step, 512);
  runner_options.max_outputs_per_step = runner_options.max_tokens_per_step;
  ONEPASS_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::create(runner_options));
  ONEPASS_ASSIGN_OR_RETURN(Sequence sequence, engine->open());
  if (static_cast<int>(tokens.size()) > engine->context_length()) {
    return invalid_argument("logits: ", tokens.size(), " tokens, more than the context of ", engine->context_length());
  }
  for (int32_t token : tokens) {
    if (token < 0 || token >= engine->config().vocab_size) {
      return invalid_argument("token id: expected 0 to ", engine->config().vocab_size - 1, ", found ", token);
    }
  }
  sequence.tokens = tokens;
  const int64_t vocab_size = engine->config().vocab_size;
  ONEPASS_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::create(options.output,
                                {.name = "logits", .shape = {static_cast<int64_t>(tokens.size()), vocab_size}}));
  while (sequence.num_pending() > 0) {
    const int chunk = std::min(sequence.num_pending(), engine->runner().options().max_tokens_per_step);
    const Engine::Work work{.sequence = &sequence, .num_tokens = chunk, .num_outputs = chunk};
    ONEPASS_ASSIGN_OR_RETURN(const std::span<float> logits, engine->step({&work, 1}));
    ONEPASS_RETURN_IF_ERROR(writer.append(logits));
  }
  ONEPASS_RETURN_IF_ERROR(writer.close());
  engine->close(sequence);
  std::fprintf(stderr, "logits   [%zu, %lld] float32 in %s\n", tokens.size(), static_cast<long long>(vocab_size),
               options.output.c_str());
  return ok_status();
}

}  // namespace

void add_logits_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("logits", "Write the logits of every position to a safetensors file");
  auto options = std::make_shared<LogitsOptions>();
  options->engine.add_to(*command);
  auto* ids = add_token_ids(*command, "--input-ids", options->input_ids, "token ids, separated by commas");
  command->add_option("--prompt", options->prompt, "or a text")->excludes(ids);
  command->add_option("--output", options->output, "file to write: tensor \"logits\" [tokens, vocab_size] float32")
      ->required();
  command->callback([options, &action] {
    options->engine.check();
    if (options->input_ids.empty() && options->prompt.empty()) {
      refuse_usage(invalid_argument("logits: expected --input-ids or --prompt, found neither"));
    }
    action = [options] { return run(*options); };
  });
}

}  // namespace onepass
