#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "scheduler/scheduler.h"

namespace onepass {
namespace {

// Pieces on their way from the scheduler's thread to the caller's. Shared by both: the last callback may still be
// leaving it when the caller has gone.
struct Mailbox {
  std::mutex mutex;
  std::condition_variable arrived;
  std::deque<GenerateOutput> outputs;  // guarded by mutex
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
                                                        const std::function<void(const GenerateOutput&)>& on_output,
                                                        const std::atomic<bool>* cancel) {
  ONEPASS_RETURN_IF_ERROR(scheduler.validate(request));  // before anything is sized by it
  const auto mailbox = std::make_shared<Mailbox>();
  std::vector<GenerateResult> results(request.n);
  ONEPASS_ASSIGN_OR_RETURN(const uint64_t id,
                           scheduler.submit(std::move(request), [mailbox](const GenerateOutput& output) {
                             const std::lock_guard lock(mailbox->mutex);
                             mailbox->outputs.push_back(output);
                             mailbox->arrived.notify_one();
                           }));
  bool is_cancelled = false;
  for (bool is_last = false; !is_last;) {
    std::deque<GenerateOutput> outputs;
    {
      std::unique_lock lock(mailbox->mutex);
      const auto has_some = [&] { return !mailbox->outputs.empty(); };
      if (cancel == nullptr || is_cancelled) {
        mailbox->arrived.wait(lock, has_some);
      } else {
        // A signal handler can set a flag and nothing more.
        mailbox->arrived.wait_for(lock, std::chrono::milliseconds(20), has_some);
      }
      outputs.swap(mailbox->outputs);
    }
    for (GenerateOutput& output : outputs) {
      if (on_output) on_output(output);
      is_last = output.is_last;
      append_output(output, results[output.index]);
    }
    if (cancel != nullptr && !is_cancelled && cancel->load(std::memory_order_relaxed)) {
      is_cancelled = true;
      scheduler.cancel(id);
    }
  }
  return results;
}

}  // namespace onepass
