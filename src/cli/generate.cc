// onepass generate: the answer to one prompt, or with --prompts those to a file of them.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "cli/command.h"
#include "cli/generate_batch.h"
#include "cli/logprobs_json.h"
#include "cli/options.h"
#include "cli/print_text.h"
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
  GenerateRequest request;
  if (options.chat) {
    nlohmann::json messages = nlohmann::json::array();
    if (!options.system.empty()) messages.push_back({{"role", "system"}, {"content", options.system}});
    messages.push_back({{"role", "user"}, {"content", prompt}});
    ONEPASS_ASSIGN_OR_RETURN(request.prompt, model.encode_chat(messages));
  } else {
    ONEPASS_ASSIGN_OR_RETURN(request.prompt, model.encode(prompt));
  }
  request.sampling = options.sampling.params(model.generation_config());
  const uint64_t seed = request.sampling.seed;
  const bool wants_logprobs = request.sampling.logprobs >= 0;
  ONEPASS_ASSIGN_OR_RETURN(const std::unique_ptr<Scheduler> scheduler, model.serve({}));
  ONEPASS_RETURN_IF_ERROR(scheduler->validate(request));  // before anything is printed
  OutputCallback on_output;
  if (!options.json) {
    if (!options.chat) print_text(prompt);
    on_output = [](const GenerateOutput& output) { print_text(output.text); };
  }
  ONEPASS_ASSIGN_OR_RETURN(const std::vector<GenerateResult> results,
                           generate_blocking(*scheduler, std::move(request), on_output));
  const GenerateResult& result = results[0];
  ONEPASS_RETURN_IF_ERROR(result.status);
  if (options.json) {
    const GenerateStats& stats = result.stats;
    nlohmann::json output = {{"prompt", prompt},
                             {"text", result.text},
                             {"token_ids", result.tokens},
                             {"finish_reason", to_string(result.finish_reason)},
                             {"seed", seed},
                             {"usage",
                              {{"prompt_tokens", stats.prompt_tokens},
                               {"completion_tokens", stats.generated_tokens},
                               {"total_tokens", stats.prompt_tokens + stats.generated_tokens}}},
                             {"prefill_seconds", stats.prefill_seconds()},
                             {"decode_seconds", stats.decode_seconds()},
                             {"kv_pages", model.num_pages(stats)}};
    if (!result.matched_stop.empty()) output["matched_stop"] = result.matched_stop;
    if (wants_logprobs) output["logprobs"] = logprobs_json(model.tokenizer(), result.logprobs);
    std::printf("%s\n", output.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    std::printf("\n");
  }
  if (std::fflush(stdout) != 0) return absl::DataLossError("stdout: cannot write");
  if (!options.quiet) {
    std::fprintf(stderr, "\n%s", model.summary(result.stats, result.finish_reason, seed).c_str());
  }
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
