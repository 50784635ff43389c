// A submitted request: its answers, from arrival to the last piece.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "base/prefetch.h"
#include "scheduler/completion.h"
#include "scheduler/generation.h"
#include "scheduler/request.h"

namespace onepass {

using SteadyClock = std::chrono::steady_clock;

class RequestGroup;

// One of the answers: the sequence that the planner knows, with its text.
struct Answer : Request {
  explicit Answer(Completion text) : completion(std::move(text)) {}
  // Asks for what a new token touches beside the answer itself.
  inline void prefetch_parts() const;

  RequestGroup* group = nullptr;
  Completion completion;
  int index = 0;
  double total_logprob = 0.0;
  GenerateStats stats;
  bool has_ended = false;
  FinishReason end_reason = FinishReason::kLength;  // once it has ended
  std::vector<GenerateOutput> held;                 // best_of > n: nothing is shown before the best are known
};

// Pieces that have become certain in a step, handed out once its books are closed: whoever reads the last piece finds
// the pages free and the counts right.
struct Delivery {
  const OutputCallback* on_output;  // the group's
  // Most pieces are a token and its text: they come without a GenerateOutput of their own, which would be five times as
  // large.
  uint64_t id = 0;
  int index = 0;
  int32_t token = 0;
  std::string text;
  std::unique_ptr<GenerateOutput> output;  // the whole piece, when there is more to it
};

// Used by the scheduler's thread alone.
class RequestGroup {
 public:
  // `first_id` is the first answer's id; each has one of its own. `max_tokens`: what context and cache allow in all.
  RequestGroup(uint64_t first_id, GenerateRequest given, OutputCallback on_output, const Tokenizer* tokenizer,
               const std::vector<int32_t>& eos_token_ids, int max_tokens);

  // Where pieces go; set before anything else is called, and outlives the group.
  void set_outbox(std::vector<Delivery>* outbox) { outbox_ = outbox; }

  uint64_t id() const { return id_; }
  std::vector<std::unique_ptr<Answer>>& answers() { return answers_; }
  std::optional<SteadyClock::time_point> deadline() const { return deadline_; }
  double seconds_since_arrival() const;

  // A sampled token of one answer; returns true when the answer is complete with it.
  bool on_token(Answer& answer, SampledToken token);
  // Ends an answer from outside.
  void end(Answer& answer, FinishReason reason, const Status& status = ok_status());

  int num_ended() const { return num_ended_; }
  // All answers have ended, and no step in flight will bring more tokens for any of them.
  bool is_over() const;

 private:
  // best_of > n: which answers are shown is known at the end.
  bool is_held() const { return static_cast<int>(answers_.size()) > n_; }
  // Puts `output` into the outbox, or keeps it until the best answers are known.
  void deliver(Answer& answer, GenerateOutput output);
  void put(GenerateOutput output);
  void deliver_best();
  void finish(Answer& answer, GenerateOutput output, FinishReason reason);

  const uint64_t id_;
  const int n_;
  const bool wants_logprobs_;
  const OutputCallback on_output_;
  std::vector<Delivery>* outbox_ = nullptr;
  const SteadyClock::time_point arrived_at_ = SteadyClock::now();
  std::optional<SteadyClock::time_point> deadline_;
  std::vector<std::unique_ptr<Answer>> answers_;
  int num_ended_ = 0;
};

inline void Answer::prefetch_parts() const {
  prefetch(tokens.data() + tokens.size());
  prefetch(group);
}

}  // namespace onepass
