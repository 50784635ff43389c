#include "scheduler/step_executor.h"

#include <chrono>

#include "base/check.h"
#include "base/thread_pool.h"

namespace onepass {

StepExecutor::StepExecutor(ModelRunner& runner) : runner_(runner), last_tokens_(runner.table().max_requests(), 0) {}

void StepExecutor::launch(const StepPlan& plan) {
  batch_.clear();
  slots_.clear();
  rows_.clear();
  std::vector<Sampled> sampled;
  sampled.reserve(plan.items.size() + plan.forks.size());
  auto fork = plan.forks.begin();
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const StepPlan::Item& item = plan.items[i];
    const int32_t* const tokens =
        item.is_known ? item.request->tokens.data() + item.first_position : &last_tokens_[item.slot];
    batch_.add(item.slot, tokens, item.num_tokens, item.first_position, item.samples ? 1 : 0, runner_.table(),
               runner_.options().page_size);
    if (!item.samples) continue;
    const int row = static_cast<int>(batch_.output_rows.size()) - 1;
    const auto add = [&](Request* request, int slot) {
      sampled.push_back({request, SampledToken()});
      slots_.push_back(slot);
      rows_.push_back(row);
    };
    add(item.request, item.slot);
    for (; fork != plan.forks.end() && fork->item == static_cast<int>(i); ++fork) add(fork->request, fork->slot);
  }

  const auto start = std::chrono::steady_clock::now();
  const Status status = run(plan, sampled);
  if (!status.ok()) {  // a GPU's error: none of the step's tokens can be trusted
    for (Sampled& one : sampled) one.token = status;
  }
  device_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  results_.push_back(std::move(sampled));
}

Status StepExecutor::run(const StepPlan& plan, std::vector<Sampled>& sampled) {
  ONEPASS_ASSIGN_OR_RETURN(const std::span<float> logits, runner_.forward(batch_));
  const size_t vocab = runner_.config().vocab_size;
  const auto sample = [&](int64_t i, int) {
    const std::span<float> row = logits.subspan(rows_[i] * vocab, vocab);
    const bool is_shared =
        (i > 0 && rows_[i - 1] == rows_[i]) || (i + 1 < std::ssize(rows_) && rows_[i + 1] == rows_[i]);
    if (is_shared) {  // a sampler changes the logits
      std::vector<float> copy(row.begin(), row.end());
      sampled[i].token = sampled[i].request->sampler->sample(copy);
    } else {
      sampled[i].token = sampled[i].request->sampler->sample(row);
    }
    if (sampled[i].token.ok()) last_tokens_[slots_[i]] = sampled[i].token->token;
  };
  runner_.stream().pool->parallel_dynamic(std::ssize(sampled), sample);
  for (const PageCopy& copy : plan.copies) {
    ONEPASS_RETURN_IF_ERROR(runner_.copy_page(copy.from, copy.to, copy.num_tokens));
  }
  return ok_status();
}

std::vector<StepExecutor::Sampled> StepExecutor::collect() {
  ONEPASS_CHECK(!results_.empty());
  std::vector<Sampled> oldest = std::move(results_.front());
  results_.pop_front();
  return oldest;
}

}  // namespace onepass
