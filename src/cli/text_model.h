// An engine, its tokenizer and its chat template, loaded side by side: what generate, chat, logits and perplexity work
// with.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "models/generation_config.h"
#include "scheduler/scheduler.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace onepass {

class TextModel {
 public:
  static StatusOr<TextModel> load(const ModelRunnerOptions& options);

  Engine& engine() const { return *engine_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const GenerationConfig& generation_config() const { return generation_config_; }

  // Token ids of a text, with the special tokens that the tokenizer adds (a BOS, say). Special tokens in the text count
  // as such.
  StatusOr<std::vector<int32_t>> encode(std::string_view text) const;

  // Token ids of a conversation up to the assistant's turn; an error when the model has no chat template.
  StatusOr<std::vector<int32_t>> encode_chat(const nlohmann::json& messages) const;

  // One line: model, size, device, attention.
  std::string description() const;

  // A scheduler on the engine's runner, for answers; the engine opens no sequences meanwhile. The model outlives it.
  StatusOr<std::unique_ptr<Scheduler>> serve(const SchedulerOptions& options) const;

  // What an answer took, for people: model, device, tokens/s, pages.
  std::string summary(const GenerateStats& stats, FinishReason reason, uint64_t seed) const;
  // Pages of the KV cache that the answer and its prompt lie in.
  int num_pages(const GenerateStats& stats) const;

 private:
  std::unique_ptr<Engine> engine_;  // methods that use it are const towards the model, not the cache
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_template_;  // null when the model has none
  GenerationConfig generation_config_;
};

}  // namespace onepass
