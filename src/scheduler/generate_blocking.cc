#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "scheduler/scheduler.h"

namespace onepass {
namespace {

// Shared by the caller's thread and the scheduler's: the last callback may still be leaving it when the caller has
// gone.
struct Answers {
  std::mutex mutex;
  std::condition_variable ended;
  bool is_over = false;                 // guarded by mutex
  std::vector<GenerateResult> results;  // the scheduler's until is_over
};

}  // namespace

void append_output(const GenerateOutput& output, GenerateResult& result) {
  result.text += output.text;
  result.tokens.insert(result.tokens.end(), output.tokens.begin(), output.tokens.end());
  result.logprobs.insert(result.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
  if (!output.finish_reason) return;
  result.finish_reason = *output.finish_reason;
  result.matched_stop = output.matched_stop;
  result.status = output.status;
  result.stats = output.stats;
}

StatusOr<std::vector<GenerateResult>> generate_blocking(Scheduler& scheduler, GenerateRequest request,
                                                        const OutputCallback& on_output,
                                                        const std::atomic<bool>* cancel) {
  ONEPASS_RETURN_IF_ERROR(scheduler.validate(request));  // before anything is sized by it
  const auto answers = std::make_shared<Answers>();
  answers->results.resize(request.n);
  ONEPASS_ASSIGN_OR_RETURN(const uint64_t id,
                           scheduler.submit(std::move(request), [answers, on_output](const GenerateOutput& output) {
                             append_output(output, answers->results[output.index]);
                             // The last piece is there before the caller is woken, whatever becomes of this one.
                             struct Wake {
                               Answers& answers;
                               const bool is_last;
                               ~Wake() {
                                 if (!is_last) return;
                                 const std::lock_guard lock(answers.mutex);
                                 answers.is_over = true;
                                 answers.ended.notify_one();
                               }
                             } wake{*answers, output.is_last};
                             if (on_output) on_output(output);
                           }));
  std::unique_lock lock(answers->mutex);
  const auto is_over = [&] { return answers->is_over; };
  // A signal handler can set a flag and nothing more.
  while (cancel != nullptr && !answers->ended.wait_for(lock, std::chrono::milliseconds(20), is_over)) {
    if (!cancel->load(std::memory_order_relaxed)) continue;
    scheduler.cancel(id);
    break;
  }
  answers->ended.wait(lock, is_over);
  return std::move(answers->results);
}

}  // namespace onepass
