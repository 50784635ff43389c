// Sequences over a ModelRunner: their pages, their chunks, their tokens.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "engine/model_runner.h"
#include "kv_cache/page_allocator.h"

namespace onepass {

// A text being read and written. `tokens` are all that is known of it; the K and V of the first num_computed are in the
// cache.
struct Sequence {
  int slot = -1;
  std::vector<int32_t> tokens;
  int num_computed = 0;

  int num_pending() const { return static_cast<int>(tokens.size()) - num_computed; }
};

// Used by one thread at a time.
class Engine {
 public:
  static StatusOr<std::unique_ptr<Engine>> create(const ModelRunnerOptions& options);

  ModelRunner& runner() { return *runner_; }
  const ModelConfig& config() const { return runner_->config(); }
  int context_length() const { return runner_->options().context_length; }
  int pages_in_use() const { return pages_.capacity() - pages_.num_free(); }
  int page_capacity() const { return pages_.capacity(); }

  // A new, empty sequence; an error when max_requests are open. Whoever opens one closes it.
  StatusOr<Sequence> open();
  // Frees the sequence's pages and slot.
  void close(Sequence& sequence);

  // Token ids are in the vocabulary, and `count` tokens (with `new_tokens` more to come) fit the context; one-line
  // errors.
  Status check_tokens(std::span<const int32_t> tokens) const;

  // Forgets the K and V of all but the first `num_tokens` tokens, and their pages. The tokens stay.
  void rewind(Sequence& sequence, int num_tokens);

  struct Work {
    Sequence* sequence;
    int num_tokens;       // of the pending ones, from the first: at least 1
    int num_outputs = 1;  // logits of the last num_outputs of them
  };

  // Computes the pending tokens named, of different sequences, in one step. Returns the logits, [sum of num_outputs,
  // vocab_size], valid until the next step. An error (out of pages) changes nothing.
  StatusOr<std::span<float>> step(std::span<const Work> work);

  // The same, but sampler i chooses the token after work[i] (num_outputs is 1), on the device, which may only have
  // begun when this returns. Until collect() the sequence has a placeholder for its token, which the next launch() may
  // compute. Sequences and samplers live until then; at most ModelRunner::kMaxStepsInFlight steps are in flight.
  Status launch(std::span<const Work> work, std::span<Sampler* const> samplers);
  // The tokens of the oldest step in flight, in the order of its work; the sequences have them. An error ends the step.
  StatusOr<std::vector<SampledToken>> collect();

  // Computes all pending tokens of one sequence in chunks; returns the last one's logits, [vocab_size].
  StatusOr<std::span<float>> prefill(Sequence& sequence);

  // Every page in one state, nothing leaked: empty when so. For tests and idle servers.
  std::vector<PageAllocator::Violation> check() const { return pages_.check(runner_->table()); }

 private:
  explicit Engine(std::unique_ptr<ModelRunner> runner);

  // Pages for the work, and the batch.
  Status prepare(std::span<const Work> work);
  // Pages for the first `num_tokens` tokens of the sequence.
  bool reserve(Sequence& sequence, int num_tokens);

  std::unique_ptr<ModelRunner> runner_;
  PageAllocator pages_;
  Batch batch_;  // scratch
  struct InFlight {
    Sequence* sequence;
    size_t place;  // of its token
  };
  std::deque<std::vector<InFlight>> in_flight_;
};

}  // namespace onepass
