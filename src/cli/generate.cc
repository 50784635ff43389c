// onepass generate: the answer to one prompt, or with --prompts those to a file of them.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "cli/command.h"
#include "cli/generate_batch.h"
#include "cli/logprobs_json.h"
#include "cli/options.h"
#include "cli/scheduler_options.h"
#include "cli/text_model.h"

namespace onepass {
namespace {

struct GenerateOptions {
  EngineOptions engine;
  SamplingOptions sampling;
  std::string prompt;
  std::string prompt_file;
  std::string system;
  std::string prompts;
  std::string output;
  SchedulerCliOptions scheduling;
  bool chat = false;
  bool json = false;
  bool quiet = false;
};

// --prompts: many at once.
Status run_batch(const GenerateOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(ModelRunnerOptions runner_options, options.engine.runner_options());
  options.scheduling.apply(runner_options);
  ONEPASS_ASSIGN_OR_RETURN(const TextModel model, TextModel::load(runner_options));
  return generate_batch(model, {.prompts_path = options.prompts,
                                .output_path = options.output,
                                .scheduling = options.scheduling,
                                .defaults = options.sampling.params(model.generation_config()),
                                .quiet = options.quiet});
}

Status run(const GenerateOptions& options) {
  if (!options.prompts.empty()) return run_batch(options);
  std::string prompt = options.prompt;
  if (!options.prompt_file.empty()) {
    ONEPASS_ASSIGN_OR_RETURN(prompt, read_text_input(options.prompt_file));
  }
  if (prompt.empty()) return invalid_argument(options.prompt_file, ": expected text, found none");
  ONEPASS_ASSIGN_OR_RETURN(const ModelRunnerOptions runner_options, options.engine.runner_options());
  ONEPASS_ASSIGN_OR_RETURN(const TextModel model, TextModel::load(runner_options));
  GenerationRequest request;
  if (options.chat) {
    nlohmann::json messages = nlohmann::json::array();
    if (!options.system.empty()) messages.push_back({{"role", "system"}, {"content", options.system}});
    messages.push_back({{"role", "user"}, {"content", prompt}});
    ONEPASS_ASSIGN_OR_RETURN(request.prompt, model.encode_chat(messages));
  } else {
    ONEPASS_ASSIGN_OR_RETURN(request.prompt, model.encode(prompt));
  }
  request.sampling = options.sampling.params(model.generation_config());
  // Before anything is printed.
  ONEPASS_RETURN_IF_ERROR(validate(request.sampling, model.engine().config().vocab_size));
  ONEPASS_RETURN_IF_ERROR(model.engine().check_tokens(request.prompt));
  if (!options.json) {
    request.on_text = [](std::string_view text) {
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    };
    if (!options.chat) request.on_text(prompt);
  }
  ONEPASS_ASSIGN_OR_RETURN(Sequence sequence, model.engine().open());
  ONEPASS_ASSIGN_OR_RETURN(const GenerationResult result,
                           generate(model.engine(), model.tokenizer(), sequence, request));
  if (options.json) {
    const GenerationStats& stats = result.stats;
    nlohmann::json output = {{"prompt", prompt},
                             {"text", result.text},
                             {"token_ids", result.tokens},
                             {"finish_reason", to_string(result.finish_reason)},
                             {"seed", request.sampling.seed},
                             {"usage",
                              {{"prompt_tokens", stats.prompt_tokens},
                               {"completion_tokens", stats.generated_tokens},
                               {"total_tokens", stats.prompt_tokens + stats.generated_tokens}}},
                             {"prefill_seconds", stats.prefill_seconds},
                             {"decode_seconds", stats.decode_seconds},
                             {"kv_pages", stats.pages_used}};
    if (!result.matched_stop.empty()) output["matched_stop"] = result.matched_stop;
    if (request.sampling.logprobs >= 0) output["logprobs"] = logprobs_json(model.tokenizer(), result.logprobs);
    std::printf("%s\n", output.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    std::printf("\n");
  }
  if (std::fflush(stdout) != 0) return absl::DataLossError("stdout: cannot write");
  if (!options.quiet) {
    std::fprintf(stderr, "\n%s", model.summary(result.stats, result.finish_reason, request.sampling.seed).c_str());
  }
  model.engine().close(sequence);
  return ok_status();
}

}  // namespace

void add_generate_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("generate", "Continue a prompt, or answer it");
  auto options = std::make_shared<GenerateOptions>();
  options->engine.add_to(*command);
  auto* prompt = command->add_option("--prompt", options->prompt, "the text to continue");
  auto* file =
      command->add_option("--prompt-file", options->prompt_file, "read it from a file or a pipe")->excludes(prompt);
  prompt->excludes(file);
  auto* chat = command->add_flag("--chat", options->chat,
                                 "put the prompt through the model's chat template, as a user's message");
  command->add_option("--system", options->system, "a system message before it")->needs(chat);
  auto* json = command->add_flag("--json", options->json, "print one JSON object instead of text");
  command->add_flag("--quiet", options->quiet, "no progress and no summary on stderr");
  auto* prompts = command->add_option("--prompts", options->prompts,
                                      "many requests at once: a JSONL file, {\"prompt\": ...} or {\"messages\": ...} "
                                      "and any sampling options a line");
  prompts->excludes(prompt)->excludes(file)->excludes(chat)->excludes(json);
  command->add_option("--output", options->output, "with --prompts: where the answers go (JSONL); a second run goes on")
      ->needs(prompts);
  options->scheduling.add_to(*command);
  options->sampling.add_to(*command);
  auto* logprobs = command->get_option("--logprobs");
  logprobs->description(
      "log-probabilities of the chosen token and of the N likeliest (shown with --json and --prompts)");
  for (const char* name : {"--max-running-requests", "--kv-tokens", "--kv-memory-fraction", "--schedule-policy",
                           "--disable-prefix-cache", "--overlap", "--trace"}) {
    command->get_option(name)->needs(prompts);
  }
  command->callback([options, logprobs, &action] {
    options->engine.check();
    options->sampling.check();
    if (options->prompts.empty() && options->prompt_file.empty() && options->prompt.empty()) {
      refuse_usage(invalid_argument("--prompt: expected text, found none"));
    }
    if (logprobs->count() > 0 && !options->json && options->prompts.empty()) {
      refuse_usage(invalid_argument("--logprobs requires --json or --prompts"));
    }
    action = [options] { return run(*options); };
  });
}

}  // namespace onepass
