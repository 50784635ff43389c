// onepass perplexity: how well a model predicts a text.
#include <climits>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "cli/command.h"
#include "cli/options.h"
#include "cli/text_model.h"

namespace onepass {
namespace {

struct PerplexityOptions {
  EngineOptions engine;
  std::string file;
  int window = 0;
  bool json = false;
};

constexpr size_t kMaxTextBytes = size_t{256} << 20;

// -log p(target), in double.
double negative_log_likelihood(std::span<const float> logits, int32_t target) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit) - top);
  return std::log(sum) + top - logits[target];
}

Status run(const PerplexityOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(ModelRunnerOptions runner_options, options.engine.runner_options());
  runner_options.max_tokens_per_step = std::min(runner_options.max_tokens_per_step, 128);
  runner_options.max_outputs_per_step = runner_options.max_tokens_per_step;
  ONEPASS_ASSIGN_OR_RETURN(const std::string text, read_text_input(options.file, kMaxTextBytes));
  ONEPASS_ASSIGN_OR_RETURN(const TextModel model, TextModel::load(runner_options));
  Engine& engine = model.engine();
  ONEPASS_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                           model.tokenizer().encode(text, {.add_special_tokens = false}));
  const std::optional<int32_t> bos = model.tokenizer().bos_id();
  const int window = options.window > 0 ? options.window : engine.context_length();
  if (window > engine.context_length()) {
    return invalid_argument("window: ", window, " tokens, more than the context of ", engine.context_length());
  }
  const int prefix = bos ? 1 : 0;
  if (window < 2) return invalid_argument("window: expected at least 2 tokens, found ", window);
  const int vocab_size = engine.config().vocab_size;
  double sum = 0.0;
  int64_t count = 0;
  for (size_t begin = 0; begin < tokens.size(); begin += window - prefix) {
    const size_t end = std::min(tokens.size(), begin + window - prefix);
    ONEPASS_ASSIGN_OR_RETURN(Sequence sequence, engine.open());
    if (bos) sequence.tokens.push_back(*bos);
    sequence.tokens.insert(sequence.tokens.end(), tokens.begin() + begin, tokens.begin() + end);
    while (sequence.num_pending() > 0) {
      const int chunk = std::min(sequence.num_pending(), engine.runner().options().max_tokens_per_step);
      const int first = sequence.num_computed;
      const Engine::Work work{.sequence = &sequence, .num_tokens = chunk, .num_outputs = chunk};
      ONEPASS_ASSIGN_OR_RETURN(const std::span<float> logits, engine.step({&work, 1}));
      for (int i = 0; i < chunk && first + i + 1 < static_cast<int>(sequence.tokens.size()); ++i) {
        sum += negative_log_likelihood(logits.subspan(static_cast<size_t>(i) * vocab_size, vocab_size),
                                       sequence.tokens[first + i + 1]);
        ++count;
      }
    }
    engine.close(sequence);
  }
  if (count == 0)
    return invalid_argument(options.file, ": expected a text of at least two tokens, found ", tokens.size());
  const double mean = sum / static_cast<double>(count);
  if (options.json) {
    const nlohmann::json output = {{"tokens", count},
                                   {"window", window},
                                   {"nll_per_token", mean},
                                   {"perplexity", std::exp(mean)},
                                   {"bits_per_byte", sum / std::log(2.0) / static_cast<double>(text.size())}};
    std::printf("%s\n", output.dump(2).c_str());
  } else {
    std::printf("perplexity %.4f  (loss %.5f a token, %.4f bits a byte; %lld tokens in windows of %d)\n",
                std::exp(mean), mean, sum / std::log(2.0) / static_cast<double>(text.size()),
                static_cast<long long>(count), window);
  }
  return ok_status();
}

}  // namespace

void add_perplexity_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("perplexity", "How well a model predicts a text");
  auto options = std::make_shared<PerplexityOptions>();
  options->engine.add_to(*command);
  command->add_option("--file", options->file, "the text")->required();
  command
      ->add_option("--window", options->window,
                   "tokens of one window, its BOS included; windows do not overlap; 0: the context length")
      ->check(CLI::Range(0, INT_MAX))
      ->capture_default_str();
  command->add_flag("--json", options->json);
  command->callback([options, &action] {
    options->engine.check();
    if (options->window == 1) refuse_usage(invalid_argument("--window: expected 0 or at least 2 tokens, found 1"));
    action = [options] { return run(*options); };
  });
}

}  // namespace onepass
