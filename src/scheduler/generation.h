// What is asked of the scheduler, and what it answers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/finish_reason.h"
#include "engine/sampler.h"
#include "engine/sampling_params.h"

namespace onepass {

struct GenerateRequest {
  std::vector<int32_t> prompt;  // at least one token
  SamplingParams sampling;
  int n = 1;                     // answers, each with a seed of its own: sampling.seed, + 1, ...
  int best_of = 0;               // of so many (0: n), those n with the highest log-probability per token
  int priority = 0;              // the higher, the earlier; requests of a lower one give way when pages run out
  std::string cache_salt;        // shares cached prefixes with requests of the same salt only
  double timeout_seconds = 0.0;  // from its arrival; 0: none
};

constexpr int kMaxAnswers = 128;  // of one request

struct GenerateStats {
  int prompt_tokens = 0;
  int cached_tokens = 0;  // of the prompt, not computed for this request; the same for all its answers
  int generated_tokens = 0;
  int retractions = 0;
  // Seconds on a steady clock.
  double queue_seconds = 0.0;        // until it was first admitted
  double first_token_seconds = 0.0;  // from arrival
  double total_seconds = 0.0;        // from arrival

  double prefill_seconds() const { return first_token_seconds - queue_seconds; }  // until the first token is known
  double decode_seconds() const { return total_seconds - first_token_seconds; }   // for the others
};

// A piece of one answer, as it becomes certain.
struct GenerateOutput {
  uint64_t id = 0;   // of the request
  int index = 0;     // of the answer: 0 .. n-1
  std::string text;  // complete UTF-8, no part of a stop string
  std::vector<int32_t> tokens;
  std::vector<SampledToken> logprobs;  // one a token, when asked for

  // The rest is there in the answer's last piece.
  std::optional<FinishReason> finish_reason;
  std::string matched_stop;  // the stop string that ended it, if one did
  Status status;             // when finish_reason is kError
  GenerateStats stats;
  bool is_last = false;  // no more pieces of this request
};

// Called on the scheduler's thread, which it must not hold up: hand over and return. Not called again after is_last.
// When it throws, the request is cancelled.
using OutputCallback = std::function<void(const GenerateOutput&)>;

// A whole answer.
struct GenerateResult {
  std::string text;
  std::vector<int32_t> tokens;  // generated ones, end token included
  std::vector<SampledToken> logprobs;
  FinishReason finish_reason = FinishReason::kLength;
  std::string matched_stop;
  Status status;
  GenerateStats stats;
};

}  // namespace onepass
