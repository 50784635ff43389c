#include "engine/generator.h"

#include <algorithm>
#include <chrono>

#include "tokenizer/incremental_detokenizer.h"
#include "tokenizer/stop_string_matcher.h"

namespace onepass {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool contains(const std::vector<int32_t>& tokens, int32_t token) {
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

// Keeps what the sequence has computed of the new prompt (all but its last token, whose logits are needed); returns how
// much.
int reuse_prefix(Engine& engine, Sequence& sequence, const std::vector<int32_t>& prompt) {
  const size_t limit = std::min<size_t>(sequence.num_computed, prompt.size() - 1);
  const auto mismatch = std::mismatch(prompt.begin(), prompt.begin() + limit, sequence.tokens.begin());
  const int shared = static_cast<int>(mismatch.first - prompt.begin());
  engine.rewind(sequence, shared);
  sequence.tokens = prompt;
  return shared;
}

}  // namespace

StatusOr<GenerationResult> generate(Engine& engine, const Tokenizer& tokenizer, Sequence& sequence,
                                    const GenerationRequest& request) {
  ONEPASS_RETURN_IF_ERROR(validate(request.sampling, engine.config().vocab_size));
  ONEPASS_RETURN_IF_ERROR(engine.check_tokens(request.prompt));
  std::vector<int32_t> end_tokens = request.sampling.stop_token_ids;
  if (!request.sampling.ignore_eos) {
    const std::vector<int32_t>& eos = engine.config().eos_token_ids;
    end_tokens.insert(end_tokens.end(), eos.begin(), eos.end());
  }
  Sampler sampler(request.sampling, request.prompt, end_tokens);
  IncrementalDetokenizer detokenizer(tokenizer);
  StopStringMatcher stops(request.sampling.stop, request.sampling.include_stop_str_in_output);
  const auto may_stop = [&] { return sampler.num_sampled() > request.sampling.min_new_tokens; };

  GenerationResult result;
  const auto emit = [&](const std::string& text) {
    if (text.empty()) return;
    result.text += text;
    if (request.on_text) request.on_text(text);
  };
  result.stats.prompt_tokens = static_cast<int>(request.prompt.size());
  result.stats.cached_tokens = reuse_prefix(engine, sequence, request.prompt);

  const Clock::time_point start = Clock::now();
  ONEPASS_ASSIGN_OR_RETURN(std::span<float> logits, engine.prefill(sequence));
  Clock::time_point first_token = Clock::now();
  while (true) {
    ONEPASS_ASSIGN_OR_RETURN(SampledToken sampled, sampler.sample(logits));
    const int32_t token = sampled.token;
    sequence.tokens.push_back(token);
    result.tokens.push_back(token);
    if (request.sampling.logprobs >= 0) result.logprobs.push_back(std::move(sampled));
    if (result.tokens.size() == 1) {
      result.stats.prefill_seconds = seconds_since(start);
      first_token = Clock::now();
    }
    if (contains(end_tokens, token)) {
      result.finish_reason = FinishReason::kStop;
      break;
    }
    emit(stops.push(detokenizer.push(token), may_stop()));
    if (stops.matched()) {
      result.finish_reason = FinishReason::kStop;
      result.matched_stop = stops.match();
      break;
    }
    if (sampler.num_sampled() >= request.sampling.max_new_tokens ||
        static_cast<int>(sequence.tokens.size()) >= engine.context_length()) {
      result.finish_reason = FinishReason::kLength;
      break;
    }
    if (request.cancel != nullptr && request.cancel->load(std::memory_order_relaxed)) {
      result.finish_reason = FinishReason::kCancelled;
      break;
    }
    const Engine::Work work{.sequence = &sequence, .num_tokens = 1};
    ONEPASS_ASSIGN_OR_RETURN(logits, engine.step({&work, 1}));
  }
  if (!stops.matched()) {
    emit(stops.push(detokenizer.flush(), may_stop()));
    emit(stops.flush());
  }
  result.stats.decode_seconds = seconds_since(first_token);
  result.stats.generated_tokens = static_cast<int>(result.tokens.size());
  result.stats.pages_used = engine.pages_in_use();
  return result;
}

}  // namespace onepass
