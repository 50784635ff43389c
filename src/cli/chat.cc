// onepass chat: a conversation in the terminal.
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/print_text.h"
#include "cli/text_model.h"

namespace onepass {
namespace {

// Signal handlers reach nothing but objects of static lifetime.
std::atomic<bool> interrupted{false};

void on_interrupt(int) { interrupted.store(true); }

struct ChatOptions {
  EngineOptions engine;
  SamplingOptions sampling;
  std::string system;
};

nlohmann::json opening(const std::string& system) {
  nlohmann::json messages = nlohmann::json::array();
  if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  return messages;
}

// Token ids of the conversation. Where they and an answer (of a quarter of the context at most) do not fit the context,
// the oldest turns behind the first `kept` messages leave `messages`: a user's and the answer to it. `dropped` says how
// many.
StatusOr<std::vector<int32_t>> encode_what_fits(const TextModel& model, int max_new_tokens, size_t kept,
                                                nlohmann::json& messages, int& dropped) {
  const auto context = static_cast<size_t>(model.engine().context_length());
  const size_t answer = std::min(static_cast<size_t>(max_new_tokens), context / 4);
  for (dropped = 0;; ++dropped) {
    ONEPASS_ASSIGN_OR_RETURN(std::vector<int32_t> prompt, model.encode_chat(messages));
    if (prompt.size() + answer <= context || messages.size() < kept + 3) return prompt;
    const auto oldest = messages.begin() + static_cast<int64_t>(kept);
    messages.erase(oldest, oldest + 2);
  }
}

Status run(const ChatOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(const ModelRunnerOptions runner_options, options.engine.runner_options());
  ONEPASS_ASSIGN_OR_RETURN(const TextModel model, TextModel::load(runner_options));
  nlohmann::json messages = opening(options.system);
  // Says at once when the model has no chat template, before anything is typed.
  {
    nlohmann::json probe = messages;
    probe.push_back({{"role", "user"}, {"content", "hello"}});
    ONEPASS_RETURN_IF_ERROR(model.encode_chat(probe).status());
  }
  SamplingParams sampling = options.sampling.params(model.generation_config());
  ONEPASS_RETURN_IF_ERROR(validate(sampling, model.engine().config().vocab_size));
  const bool terminal = ::isatty(STDIN_FILENO) != 0;
  if (terminal) {
    std::fprintf(stderr, "%s\nEmpty line or Ctrl-D: leave. Ctrl-C: stop the answer. /reset: begin anew.\n",
                 model.description().c_str());
  }
  struct sigaction handler = {};
  handler.sa_handler = on_interrupt;
  ::sigaction(SIGINT, &handler, nullptr);

  ONEPASS_ASSIGN_OR_RETURN(const std::unique_ptr<Scheduler> scheduler, model.serve({}));
  std::string line;
  Status status = ok_status();
  while (true) {
    if (terminal) std::fprintf(stderr, "\n> ");
    if (!std::getline(std::cin, line) || (terminal && line.empty())) break;
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty()) continue;
    if (line == "/reset") {
      messages = opening(options.system);
      continue;
    }
    messages.push_back({{"role", "user"}, {"content", line}});
    interrupted.store(false);
    const nlohmann::json before = messages;
    int dropped = 0;
    auto prompt = encode_what_fits(model, sampling.max_new_tokens, opening(options.system).size(), messages, dropped);
    if (!prompt.ok()) {
      status = prompt.status();
      break;
    }
    GenerateRequest request;
    request.prompt = *std::move(prompt);
    request.sampling = sampling;
    status = scheduler->validate(request);
    if (!status.ok() && terminal) {  // a message that is too long by itself: another may be shorter
      std::fprintf(stderr, "onepass: %s\n", std::string(status.message()).c_str());
      status = ok_status();
      messages = before;
      messages.erase(messages.size() - 1);
      continue;
    }
    if (!status.ok()) break;
    if (dropped > 0) {
      std::fprintf(stderr, "The context of %d tokens is full: forgot the oldest %s.\n", model.engine().context_length(),
                   dropped == 1 ? "turn" : str_cat(dropped, " turns").c_str());
    }
    const auto results = generate_blocking(
        *scheduler, std::move(request), [](const GenerateOutput& output) { print_text(output.text); }, &interrupted);
    status = results.ok() ? results->front().status : results.status();
    if (!status.ok()) break;
    const GenerateResult& result = results->front();
    std::printf("\n");
    if (std::fflush(stdout) != 0) {
      status = absl::DataLossError("stdout: cannot write");
      break;
    }
    if (terminal) {
      std::fprintf(stderr, "%s", model.summary(result.stats, result.finish_reason, sampling.seed).c_str());
    }
    messages.push_back({{"role", "assistant"}, {"content", result.text}});
    ++sampling.seed;  // another draw for the next turn, still set by the first seed
  }
  return status;
}

}  // namespace

void add_chat_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("chat", "Talk with a model that has a chat template");
  auto options = std::make_shared<ChatOptions>();
  options->engine.add_to(*command);
  command->add_option("--system", options->system, "system message");
  options->sampling.add_to(*command);
  command->remove_option(command->get_option("--logprobs"));  // a conversation has no place to show them
  command->callback([options, &action] {
    options->engine.check();
    options->sampling.check();
    action = [options] { return run(*options); };
  });
}

}  // namespace onepass
