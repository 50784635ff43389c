#include "engine/engine.h"

#include <algorithm>

#include "base/check.h"

namespace onepass {

StatusOr<std::unique_ptr<Engine>> Engine::create(const ModelRunnerOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(std::unique_ptr<ModelRunner> runner, ModelRunner::create(options));
  return std::unique_ptr<Engine>(new Engine(std::move(runner)));
}

Engine::Engine(std::unique_ptr<ModelRunner> runner)
    : runner_(std::move(runner)), pages_(runner_->pool().config().num_pages) {}

StatusOr<Sequence> Engine::open() {
  const int slot = runner_->table().acquire();
  if (slot < 0) return resource_exhausted("all ", runner_->table().max_requests(), " sequences are in use");
  return Sequence{.slot = slot};
}

void Engine::close(Sequence& sequence) {
  rewind(sequence, 0);
  runner_->table().release(sequence.slot);
  sequence = Sequence();
}

Status Engine::check_tokens(std::span<const int32_t> tokens) const {
  if (tokens.empty()) return invalid_argument("prompt: expected at least one token, found none");
  if (static_cast<int64_t>(tokens.size()) >= context_length()) {
    return invalid_argument("prompt: ", tokens.size(), " tokens, but the context of ", context_length(),
                            " holds at most ", context_length() - 1, " and one new one");
  }
  for (int32_t token : tokens) {
    if (token < 0 || token >= config().vocab_size) {
      return invalid_argument("token id: expected 0 to ", config().vocab_size - 1, ", found ", token);
    }
  }
  return ok_status();
}

void Engine::rewind(Sequence& sequence, int num_tokens) {
  if (num_tokens > sequence.num_computed) return;
  sequence.num_computed = num_tokens;
  RequestTable& table = runner_->table();
  const int page_size = runner_->options().page_size;
  const int kept = (num_tokens + page_size - 1) / page_size;
  const std::span<const PageId> row = table.pages(sequence.slot);
  if (static_cast<size_t>(kept) >= row.size()) return;
  pages_.free(sequence.slot, row.subspan(kept));
  table.truncate(sequence.slot, kept);
}

bool Engine::reserve(Sequence& sequence, int num_tokens) {
  RequestTable& table = runner_->table();
  const int page_size = runner_->options().page_size;
  const int needed = (num_tokens + page_size - 1) / page_size - static_cast<int>(table.pages(sequence.slot).size());
  if (needed <= 0) return true;
  std::vector<PageId> fresh;
  if (!pages_.allocate(sequence.slot, needed, fresh)) return false;
  table.append(sequence.slot, fresh);
  return true;
}

Status Engine::prepare(std::span<const Work> work) {
  for (const Work& item : work) {
    ONEPASS_CHECK_GE(item.num_tokens, 1);
    ONEPASS_CHECK_LE(item.num_tokens, item.sequence->num_pending());
    ONEPASS_CHECK_LE(item.num_outputs, item.num_tokens);
    const int length = item.sequence->num_computed + item.num_tokens;
    if (length > context_length()) {
      return resource_exhausted("sequence of ", length, " tokens, more than the context of ", context_length());
    }
  }
  for (size_t i = 0; i < work.size(); ++i) {
    if (reserve(*work[i].sequence, work[i].sequence->num_computed + work[i].num_tokens)) continue;
    for (size_t j = 0; j < i; ++j) rewind(*work[j].sequence, work[j].sequence->num_computed);
    return resource_exhausted("out of KV cache: all ", pages_.capacity(), " pages of ", runner_->options().page_size,
                              " tokens are in use");
  }
  batch_.clear();
  for (const Work& item : work) {
    const Sequence& sequence = *item.sequence;
    batch_.add(sequence.slot, sequence.tokens.data() + sequence.num_computed, item.num_tokens, sequence.num_computed,
               item.num_outputs, runner_->table(), runner_->options().page_size);
  }
  return ok_status();
}

StatusOr<std::span<float>> Engine::step(std::span<const Work> work) {
  ONEPASS_RETURN_IF_ERROR(prepare(work));
  ONEPASS_ASSIGN_OR_RETURN(const std::span<float> logits, runner_->forward(batch_));
  for (const Work& item : work) item.sequence->num_computed += item.num_tokens;
  return logits;
}

Status Engine::launch(std::span<const Work> work, std::span<Sampler* const> samplers) {
  ONEPASS_CHECK_EQ(work.size(), samplers.size());
  std::vector<SampleWork> samples;
  samples.reserve(work.size());
  for (size_t i = 0; i < work.size(); ++i) {
    ONEPASS_CHECK_EQ(work[i].num_outputs, 1);
    ONEPASS_CHECK_EQ(work[i].num_tokens, work[i].sequence->num_pending());
    samples.push_back({.sampler = samplers[i], .slot = work[i].sequence->slot});
  }
  ONEPASS_RETURN_IF_ERROR(prepare(work));
  ONEPASS_RETURN_IF_ERROR(runner_->launch(batch_, samples));
  std::vector<InFlight>& launched = in_flight_.emplace_back();
  launched.reserve(work.size());
  for (const Work& item : work) {
    Sequence& sequence = *item.sequence;
    sequence.num_computed += item.num_tokens;
    launched.push_back({&sequence, sequence.tokens.size()});
    sequence.tokens.push_back(~sequence.slot);
  }
  return ok_status();
}

StatusOr<std::vector<SampledToken>> Engine::collect() {
  ONEPASS_CHECK(!in_flight_.empty());
  const std::vector<InFlight> launched = std::move(in_flight_.front());
  in_flight_.pop_front();
  ONEPASS_ASSIGN_OR_RETURN(std::vector<StatusOr<SampledToken>> tokens, runner_->collect());
  std::vector<SampledToken> result;
  result.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (!tokens[i].ok()) continue;
    launched[i].sequence->tokens[launched[i].place] = tokens[i]->token;
    result.push_back(*std::move(tokens[i]));
  }
  for (const StatusOr<SampledToken>& token : tokens) ONEPASS_RETURN_IF_ERROR(token.status());
  return result;
}

StatusOr<std::span<float>> Engine::prefill(Sequence& sequence) {
  ONEPASS_CHECK_GE(sequence.num_pending(), 1);
  while (true) {
    const int chunk = std::min(sequence.num_pending(), runner_->options().max_tokens_per_step);
    const bool last = chunk == sequence.num_pending();
    const Work work{.sequence = &sequence, .num_tokens = chunk, .num_outputs = last ? 1 : 0};
    ONEPASS_ASSIGN_OR_RETURN(const std::span<float> logits, step({&work, 1}));
    if (last) return logits;
  }
}

}  // namespace onepass
