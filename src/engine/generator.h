// One prompt to one answer: the loop of prefill and decode for a single request, with stop conditions and streaming
// text.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/finish_reason.h"
#include "engine/sampler.h"
#include "tokenizer/tokenizer.h"

namespace onepass {

struct GenerationRequest {
  std::vector<int32_t> prompt;  // at least one token
  SamplingParams sampling;
  // Called with each piece of text as it becomes certain (complete UTF-8, no part of a stop string); may be empty.
  std::function<void(std::string_view)> on_text;
  // Set by another thread or a signal handler to end the answer early; may be null.
  const std::atomic<bool>* cancel = nullptr;
};

struct GenerationStats {
  int prompt_tokens = 0;
  int cached_tokens = 0;  // of the prompt, found in the sequence's KV cache
  int generated_tokens = 0;
  double prefill_seconds = 0.0;  // until the first token is known
  double decode_seconds = 0.0;   // for the others
  int pages_used = 0;            // of the KV cache, at the end
};

struct GenerationResult {
  std::string text;
  std::vector<int32_t> tokens;         // generated ones, end token included
  std::vector<SampledToken> logprobs;  // one a token, when asked for
  FinishReason finish_reason = FinishReason::kLength;
  std::string matched_stop;  // the stop string that ended it, if one did
  GenerationStats stats;
};

// Answers `request` in `sequence`, which may hold an earlier prompt and answer: the longest prefix that it shares with
// the new prompt is not computed again. Afterwards it holds the prompt and the answer. One-line errors: a prompt that
// does not fit, a parameter out of range, a model whose logits are not numbers.
StatusOr<GenerationResult> generate(Engine& engine, const Tokenizer& tokenizer, Sequence& sequence,
                                    const GenerationRequest& request);

}  // namespace onepass
