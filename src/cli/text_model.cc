#include "cli/text_model.h"

#include <algorithm>
#include <future>

#include "absl/strings/str_format.h"

namespace onepass {

StatusOr<TextModel> TextModel::load(const ModelRunnerOptions& options) {
  TextModel model;
  // The tokenizer of a large vocabulary takes about as long to read as the weights of a small model: read both at once.
  auto tokenizer = std::async(std::launch::async, [&] { return Tokenizer::load(options.model_dir); });
  auto engine = Engine::create(options);
  auto loaded = tokenizer.get();
  ONEPASS_RETURN_IF_ERROR(engine.status());
  ONEPASS_RETURN_IF_ERROR(loaded.status());
  model.engine_ = *std::move(engine);
  model.tokenizer_ = *std::move(loaded);
  if (model.tokenizer_->vocab_size() > model.engine_->config().vocab_size) {
    return invalid_argument(options.model_dir, ": the tokenizer has ", model.tokenizer_->vocab_size(),
                            " tokens, more than the model's vocab_size of ", model.engine_->config().vocab_size);
  }
  ONEPASS_ASSIGN_OR_RETURN(model.chat_template_, ChatTemplate::load(options.model_dir));
  ONEPASS_ASSIGN_OR_RETURN(model.generation_config_, GenerationConfig::load(options.model_dir));
  return model;
}

StatusOr<std::vector<int32_t>> TextModel::encode(std::string_view text) const {
  return tokenizer_->encode(text, {.add_special_tokens = true});
}

StatusOr<std::vector<int32_t>> TextModel::encode_chat(const nlohmann::json& messages) const {
  if (chat_template_ == nullptr) {
    return invalid_argument("chat: the model has no chat template (tokenizer_config.json or chat_template.jinja)");
  }
  ONEPASS_ASSIGN_OR_RETURN(const std::string text, chat_template_->apply({.messages = messages}));
  // The template writes the special tokens itself.
  return tokenizer_->encode(text, {.add_special_tokens = false});
}

std::string TextModel::description() const {
  const ModelRunner& runner = engine_->runner();
  return absl::StrFormat("%s (%s, %.1fM parameters, %s), %s; attention: %s, pages of %d tokens",
                         runner.options().model_dir, runner.config().architecture,
                         runner.decoder().num_parameters() * 1e-6,
                         std::string(to_string(runner.decoder().weights_dtype())), runner.device_description(),
                         std::string(runner.attention().name()), runner.options().page_size);
}

StatusOr<std::unique_ptr<Scheduler>> TextModel::serve(const SchedulerOptions& options) const {
  return Scheduler::create(engine_->runner(), tokenizer_.get(), options);
}

int TextModel::num_pages(const GenerateStats& stats) const {
  const int page_size = engine_->runner().options().page_size;
  // The last token's K and V are not computed.
  return (stats.prompt_tokens + std::max(0, stats.generated_tokens - 1) + page_size - 1) / page_size;
}

std::string TextModel::summary(const GenerateStats& stats, FinishReason reason, uint64_t seed) const {
  const int computed = stats.prompt_tokens - stats.cached_tokens;
  const int decoded = std::max(0, stats.generated_tokens - 1);  // the first one comes from the prefill
  const double kib_per_page = engine_->runner().pool().config().bytes_per_page() / 1024.0;
  std::string text = absl::StrFormat("model    %s\n", description());
  absl::StrAppendFormat(&text, "prefill  %d tokens in %.1f ms, %.1f tok/s", computed, stats.prefill_seconds() * 1e3,
                        computed / stats.prefill_seconds());
  if (stats.cached_tokens > 0) absl::StrAppendFormat(&text, " (%d more were in the cache)", stats.cached_tokens);
  absl::StrAppendFormat(&text, "\ndecode   %d tokens after the first in %.1f ms, %.1f tok/s; finish: %s; seed %d\n",
                        decoded, stats.decode_seconds() * 1e3, decoded > 0 ? decoded / stats.decode_seconds() : 0.0,
                        std::string(to_string(reason)), seed);
  absl::StrAppendFormat(&text, "KV cache %d of %d pages used, %.1f KiB each\n", num_pages(stats),
                        engine_->page_capacity(), kib_per_page);
  return text;
}

}  // namespace onepass
