// Many requests at once on one model: continuous batching with a prefix cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/model_runner.h"
#include "scheduler/generation.h"
#include "tokenizer/tokenizer.h"

namespace onepass {

struct SchedulerOptions {
  // Waiting requests are admitted by their longest cached prefix; otherwise first come, first served.
  bool longest_prefix_first = true;
  bool prefix_caching = true;
  int max_queued_requests = 4096;  // waiting ones, beyond which submit() refuses
  // Steps planned before the oldest one's tokens are known: 1 waits for each; 2 plans the next one while the device
  // works, at the price of one token too many for a request that ends by a token. 0: 2 on a GPU, 1 on the CPU, which
  // computes a step while it is launched.
  int steps_in_flight = 0;
  std::string trace_path;  // writes a trace of all steps in the Chrome/Perfetto format there; empty: none
};

// A moment's counts.
struct SchedulerStats {
  int running_requests = 0;
  int waiting_requests = 0;
  int total_pages = 0;
  int free_pages = 0;
  int cached_pages = 0;  // held by the prefix cache, in use or not

  // Since the start.
  int64_t steps = 0;
  int64_t prompt_tokens = 0;    // of the requests that were admitted
  int64_t cached_tokens = 0;    // of those, found in the cache
  int64_t computed_tokens = 0;  // by forward passes
  int64_t generated_tokens = 0;
  int64_t finished_requests = 0;
  int64_t retractions = 0;
  int64_t evicted_pages = 0;
  StepTimes device;           // forward passes and sampling
  double host_seconds = 0.0;  // planning and launching steps and handing out their results
};

class SchedulerLoop;

// Runs a thread of its own, blocked while there is nothing to do. All methods may be called from any thread.
class Scheduler {
 public:
  // `runner` and `tokenizer` outlive it; nobody else uses the runner meanwhile. Without a tokenizer (null) answers have
  // tokens and no text, and stop strings are refused. An error: the trace file cannot be written.
  static StatusOr<std::unique_ptr<Scheduler>> create(ModelRunner& runner, const Tokenizer* tokenizer,
                                                     const SchedulerOptions& options);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Whether a request could ever be answered: parameters in range, a prompt that fits the context and the KV cache.
  Status validate(const GenerateRequest& request) const;

  // Takes a request and returns its id; pieces of its answers go to `on_output`. A one-line error when it is not valid
  // or the queue is full.
  StatusOr<uint64_t> submit(GenerateRequest request, OutputCallback on_output);

  // The request ends with what it has, before the next step; nothing happens when it has ended already.
  void cancel(uint64_t id);

  SchedulerStats stats() const;

  // Frees cached prefixes that nobody uses, before the next step.
  void clear_prefix_cache();

  // Cancels what is left, waits for the last callback and ends the trace; an error when that could not be written.
  // Nothing can be submitted afterwards. The destructor does the same. Not from a callback, which is refused: it would
  // wait for itself.
  Status stop();

  // An error once an exception (a broken invariant, no memory left) has ended the scheduler's thread: what was in
  // flight has got that error as its end, and so does every later submit(). The process goes on.
  Status health() const;

  // Audits the books between two steps: what is wrong, a line each.
  std::vector<std::string> check();

 private:
  explicit Scheduler(std::unique_ptr<SchedulerLoop> loop);
  std::unique_ptr<SchedulerLoop> loop_;
};

// Adds a piece to the answer that it belongs to.
void append_output(const GenerateOutput& output, GenerateResult& result);

// Submits, waits, and returns one result for each of request.n answers. `on_output` (may be empty) sees the pieces too,
// on the scheduler's thread. Once `cancel` (may be null) is set, by another thread or a signal handler, the request
// ends with what it has.
StatusOr<std::vector<GenerateResult>> generate_blocking(Scheduler& scheduler, GenerateRequest request,
                                                        const OutputCallback& on_output,
                                                        const std::atomic<bool>* cancel = nullptr);

}  // namespace onepass
