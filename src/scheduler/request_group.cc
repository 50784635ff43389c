#include "scheduler/request_group.h"

#include <algorithm>
#include <numeric>

namespace onepass {
RequestGroup::RequestGroup(uint64_t first_id, GenerateRequest given, OutputCallback on_output,
                           const Tokenizer* tokenizer, const std::vector<int32_t>& eos_token_ids, int max_tokens)
    : id_(first_id), n_(given.n), wants_logprobs_(given.sampling.logprobs >= 0), on_output_(std::move(on_output)) {
  if (given.timeout_seconds > 0) {
    deadline_ = arrived_at_ +
                std::chrono::duration_cast<SteadyClock::duration>(std::chrono::duration<double>(given.timeout_seconds));
  }
  const int count = std::max(given.n, given.best_of);
  // The best are found by their log-probabilities.
  if (count > given.n && !wants_logprobs_) given.sampling.logprobs = 0;
  const int num_prompt = static_cast<int>(given.prompt.size());
  const int max_new = std::min(given.sampling.max_new_tokens, max_tokens - num_prompt);
  const std::vector<int32_t> ends = end_tokens(given.sampling, eos_token_ids);
  for (int i = 0; i < count; ++i) {
    SamplingParams sampling = given.sampling;
    sampling.seed += static_cast<uint64_t>(i);
    auto answer = std::make_unique<Answer>(Completion(tokenizer, sampling, ends, max_new));
    answer->index = i;
    answer->stats.prompt_tokens = num_prompt;
    Request& request = *answer;
    answer->group = this;
    request.id = first_id + static_cast<uint64_t>(i);
    request.sampler = std::make_unique<Sampler>(sampling, given.prompt, ends);
    request.tokens = given.prompt;
    request.num_prompt_tokens = num_prompt;
    request.max_tokens = num_prompt + max_new;
    request.priority = given.priority;
    request.salt = given.cache_salt;
    if (i > 0) request.fork_of = answers_.front().get();
    answers_.push_back(std::move(answer));
  }
}

double RequestGroup::seconds_since_arrival() const {
  return std::chrono::duration<double>(SteadyClock::now() - arrived_at_).count();
}

bool RequestGroup::on_token(Answer& answer, SampledToken token) {
  if (answer.completion.num_tokens() == 0) answer.stats.first_token_seconds = seconds_since_arrival();
  std::string text = answer.completion.push(token.token);
  answer.total_logprob += token.logprob;
  const auto reason = answer.completion.finish_reason();
  if (!reason && !wants_logprobs_ && !is_held()) {
    outbox_->push_back({.on_output = &on_output_,
                        .id = id(),
                        .index = answer.index,
                        .token = token.token,
                        .text = std::move(text),
                        .output = nullptr});
    return false;
  }
  GenerateOutput output;
  output.tokens.push_back(token.token);
  output.text = std::move(text);
  if (wants_logprobs_) output.logprobs.push_back(std::move(token));
  if (reason) {
    finish(answer, std::move(output), *reason);
  } else {
    deliver(answer, std::move(output));
  }
  return reason.has_value();
}

void RequestGroup::end(Answer& answer, FinishReason reason, const Status& status) {
  GenerateOutput output;
  output.text = answer.completion.flush();
  output.status = status;
  finish(answer, std::move(output), reason);
}

void RequestGroup::finish(Answer& answer, GenerateOutput output, FinishReason reason) {
  answer.stats.cached_tokens = std::max(0, answers_.front()->cached_tokens);  // siblings fork what the first one has
  answer.stats.generated_tokens = answer.completion.num_tokens();
  answer.stats.retractions = answer.num_retractions;
  answer.stats.total_seconds = seconds_since_arrival();
  answer.has_ended = true;
  answer.end_reason = reason;
  output.finish_reason = reason;
  output.matched_stop = answer.completion.matched_stop();
  output.stats = answer.stats;
  ++num_ended_;
  deliver(answer, std::move(output));
  if (num_ended_ == static_cast<int>(answers_.size()) && num_ended_ > n_) deliver_best();
}

void RequestGroup::deliver(Answer& answer, GenerateOutput output) {
  output.id = id();
  output.index = answer.index;
  if (is_held()) {
    answer.held.push_back(std::move(output));
    return;
  }
  output.is_last = output.finish_reason && num_ended_ == n_;
  put(std::move(output));
}

void RequestGroup::put(GenerateOutput output) {
  outbox_->push_back({.on_output = &on_output_,
                      .id = output.id,
                      .index = output.index,
                      .token = 0,
                      .text = {},
                      .output = std::make_unique<GenerateOutput>(std::move(output))});
}

void RequestGroup::deliver_best() {
  std::vector<int> order(answers_.size());
  std::iota(order.begin(), order.end(), 0);
  const auto mean = [&](int i) {
    return answers_[i]->total_logprob / std::max(1, answers_[i]->completion.num_tokens());
  };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return mean(a) > mean(b); });
  for (int place = 0; place < n_; ++place) {
    for (GenerateOutput& output : answers_[order[place]]->held) {
      output.index = place;
      output.is_last = output.finish_reason && place == n_ - 1;
      put(std::move(output));
    }
  }
}

bool RequestGroup::is_over() const {
  return num_ended_ == static_cast<int>(answers_.size()) &&
         std::all_of(answers_.begin(), answers_.end(), [](const auto& answer) { return answer->num_in_flight == 0; });
}

}  // namespace onepass
