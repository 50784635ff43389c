// A line of a prompts file: one request as JSON.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "cli/text_model.h"
#include "scheduler/scheduler.h"

namespace onepass {

struct PromptLine {
  nlohmann::json id;  // the line's "id", whatever it is, for its answer; null without one
  GenerateRequest request;
};

// {"prompt": TEXT or [TOKEN_ID, ...]}, {"prompt_token_ids": [TOKEN_ID, ...]} or {"messages": [{"role": ..., "content":
// ...}, ...]} (through the model's chat template), "id", and any of max_tokens, min_tokens, temperature, top_k (0 or
// -1: all), top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias ({"TOKEN_ID": BIAS}),
// seed, stop, stop_token_ids, include_stop_str_in_output, ignore_eos, logprobs, n, best_of, priority, cache_salt,
// timeout: vLLM's names. What a line leaves out, or gives as null, is as in `defaults`. One-line errors name the key.
StatusOr<PromptLine> parse_prompt_line(std::string_view line, const TextModel& model, const SamplingParams& defaults);

}  // namespace onepass
