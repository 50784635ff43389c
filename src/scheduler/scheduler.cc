#include "scheduler/scheduler.h"

#include "scheduler/scheduler_loop.h"

namespace onepass {

StatusOr<std::unique_ptr<Scheduler>> Scheduler::create(ModelRunner& runner, const Tokenizer* tokenizer,
                                                       const SchedulerOptions& given) {
  SchedulerOptions options = given;
  if (options.steps_in_flight < 0 || options.steps_in_flight > ModelRunner::kMaxStepsInFlight) {
    return invalid_argument("steps in flight: expected 0 to ", ModelRunner::kMaxStepsInFlight, ", found ",
                            options.steps_in_flight);
  }
  if (options.steps_in_flight == 0) options.steps_in_flight = runner.stream().device.kind == DeviceKind::kCuda ? 2 : 1;
  if (runner.options().max_outputs_per_step < runner.options().max_requests) {
    return invalid_argument("outputs of a step: expected at least one for each of ", runner.options().max_requests,
                            " requests, found ", runner.options().max_outputs_per_step);
  }
  if (options.max_queued_requests < 1) {
    return invalid_argument("queue: expected at least 1 place, found ", options.max_queued_requests);
  }
  std::unique_ptr<Trace> trace;
  if (!options.trace_path.empty()) {
    ONEPASS_ASSIGN_OR_RETURN(trace, Trace::create(options.trace_path));
  }
  return std::unique_ptr<Scheduler>(
      new Scheduler(std::make_unique<SchedulerLoop>(runner, tokenizer, options, std::move(trace))));
}

Scheduler::Scheduler(std::unique_ptr<SchedulerLoop> loop) : loop_(std::move(loop)) {}
Scheduler::~Scheduler() = default;

Status Scheduler::validate(const GenerateRequest& request) const {
  const ModelConfig& config = loop_->runner().config();
  ONEPASS_RETURN_IF_ERROR(onepass::validate(request.sampling, config.vocab_size));
  if (!loop_->has_tokenizer() && !request.sampling.stop.empty()) {
    return invalid_argument("stop: there is no tokenizer to find stop strings with");
  }
  if (request.n < 1 || request.n > kMaxAnswers) {
    return invalid_argument("n: expected 1 to ", kMaxAnswers, ", found ", request.n);
  }
  if (request.best_of != 0 && (request.best_of < request.n || request.best_of > kMaxAnswers)) {
    return invalid_argument("best_of: expected n (", request.n, ") to ", kMaxAnswers, ", found ", request.best_of);
  }
  if (!(request.timeout_seconds >= 0.0 && request.timeout_seconds < 1e9)) {
    return invalid_argument("timeout: expected 0 to 1e9 seconds, found ", request.timeout_seconds);
  }
  if (request.prompt.empty()) return invalid_argument("prompt: expected at least one token, found none");
  const auto length = static_cast<int64_t>(request.prompt.size());
  const int context = loop_->runner().options().context_length;
  if (length >= context) {
    return invalid_argument("prompt: ", length, " tokens, but the context of ", context, " holds at most ", context - 1,
                            " and one new one");
  }
  if (length >= loop_->max_tokens()) {
    return invalid_argument("prompt: ", length, " tokens, but the KV cache of ", loop_->max_tokens(), " holds at most ",
                            loop_->max_tokens() - 1, " and one new one");
  }
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= config.vocab_size) {
      return invalid_argument("prompt: token id: expected 0 to ", config.vocab_size - 1, ", found ", token);
    }
  }
  return ok_status();
}

StatusOr<uint64_t> Scheduler::submit(GenerateRequest request, OutputCallback on_output) {
  ONEPASS_RETURN_IF_ERROR(validate(request));
  return loop_->submit(std::move(request), std::move(on_output));
}

Status Scheduler::stop() { return loop_->stop(); }
Status Scheduler::health() const { return loop_->health(); }
void Scheduler::cancel(uint64_t id) { loop_->cancel(id); }
SchedulerStats Scheduler::stats() const { return loop_->stats(); }
void Scheduler::clear_prefix_cache() { loop_->clear_prefix_cache(); }
std::vector<std::string> Scheduler::check() { return loop_->check(); }

}  // namespace onepass
