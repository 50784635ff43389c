#include "scheduler/step_executor.h"

#include <chrono>

#include "base/check.h"

namespace onepass {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

StepExecutor::StepExecutor(ModelRunner& runner) : runner_(runner) {}

void StepExecutor::launch(const StepPlan& plan) {
  batch_.clear();
  work_.clear();
  Step step;
  step.requests.reserve(plan.items.size() + plan.forks.size());
  auto fork = plan.forks.begin();
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const StepPlan::Item& item = plan.items[i];
    const int32_t last_of_slot = ~item.slot;
    const int32_t* const tokens = item.is_known ? item.request->tokens.data() + item.first_position : &last_of_slot;
    batch_.add(item.slot, tokens, item.num_tokens, item.first_position, item.samples ? 1 : 0, runner_.table(),
               runner_.options().page_size);
    if (!item.samples) continue;
    const auto add = [&](Request* request, int slot) {
      step.requests.push_back(request);
      work_.push_back({.sampler = request->sampler.get(), .slot = slot});
    };
    add(item.request, item.slot);
    for (; fork != plan.forks.end() && fork->item == static_cast<int>(i); ++fork) {
      batch_.repeat_output();  // a sampler changes the logits
      add(fork->request, fork->slot);
    }
  }
  const Clock::time_point start = Clock::now();
  step.status = runner_.launch(batch_, work_);
  step.is_launched = step.status.ok();
  for (const PageCopy& copy : plan.copies) {
    if (step.status.ok()) step.status = runner_.copy_page(copy.from, copy.to, copy.num_tokens);
  }
  if (runner_.stream().device.kind == DeviceKind::kCpu) waiting_seconds_ += seconds_since(start);
  steps_.push_back(std::move(step));
}

StatusOr<std::vector<StepExecutor::Sampled>> StepExecutor::collect() {
  ONEPASS_CHECK(!steps_.empty());
  const Step step = std::move(steps_.front());
  steps_.pop_front();
  const Clock::time_point start = Clock::now();
  StatusOr<std::vector<StatusOr<SampledToken>>> tokens;
  if (step.is_launched) tokens = runner_.collect();
  waiting_seconds_ += seconds_since(start);
  ONEPASS_RETURN_IF_ERROR(step.status);
  ONEPASS_RETURN_IF_ERROR(tokens.status());

  std::vector<Sampled> sampled;
  sampled.reserve(step.requests.size());
  for (size_t i = 0; i < step.requests.size(); ++i) {
    sampled.push_back({step.requests[i], std::move((*tokens)[i])});
  }
  return sampled;
}

}  // namespace onepass
