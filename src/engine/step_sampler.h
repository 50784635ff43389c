// The choice of a step's tokens where its logits are: they stay there for the next step.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/sampler.h"
#include "tensor/device.h"
#include "tensor/step_upload.h"

namespace onepass {

// Whose token a row of logits gives: the request's sampler and its slot, in which the next step finds the token.
struct SampleWork {
  Sampler* sampler;
  int slot;
};

// Used by one thread at a time. A step is set, queued, and collected once the device has done it; the next one may be
// set and queued before.
class StepSampler {
 public:
  virtual ~StepSampler() = default;

  // What set_step() adds to an upload at most, in bytes.
  virtual size_t upload_bytes() const = 0;

  // A step of `num_rows` rows of logits: row i gives work[i]'s token, and the rows after those nobody's. Begins a draw
  // of each sampler, which lives until the step is collected. A step without work is not collected.
  virtual Status set_step(std::span<const SampleWork> work, int num_rows, StepUpload& upload) = 0;

  // Replaces the ids that stand for tokens of slots (Batch::input_ids), in the device's memory. Queued as part of the
  // step, before its layers.
  virtual Status resolve(int32_t* ids, int count) = 0;

  // Chooses the tokens. Changes the logits, [num_rows, vocab_size] with rows `row_stride` elements apart, in the
  // device's memory. Queued as part of the step; a captured graph serves all steps of as many rows.
  virtual Status sample(float* logits, int64_t row_stride) = 0;

  // The step that was set last will not be done.
  virtual void cancel() = 0;

  // The tokens of the oldest step that has not been collected. REQUIRES: the device has done it.
  virtual std::vector<StatusOr<SampledToken>> collect() = 0;
};

struct StepSamplerLimits {
  int vocab_size = 0;
  int max_slots = 0;
  int max_rows = 0;
};

// The pool of `stream` on the CPU, a kernel on a GPU.
StatusOr<std::unique_ptr<StepSampler>> make_step_sampler(const StepSamplerLimits& limits, const Stream& stream);

std::unique_ptr<StepSampler> make_cpu_step_sampler(const StepSamplerLimits& limits, const Stream& stream);
StatusOr<std::unique_ptr<StepSampler>> make_gpu_step_sampler(const StepSamplerLimits& limits, const Stream& stream);

}  // namespace onepass
