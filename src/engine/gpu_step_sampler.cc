// Sampling on a GPU: rows of parameters there, tokens by slot there, results in page-locked memory that it writes.
#include <algorithm>
#include <array>
#include <deque>

#include "base/check.h"
#include "engine/step_sampler.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/step_inputs.h"
#include "kernels/logit_adjustment.h"
#include "tensor/cuda/pinned_buffer.h"
#include "tensor/device_buffer.h"

namespace onepass {
namespace {

static_assert(kMaxSampleTops >= kMaxTopLogprobs);

// Set and not collected, at most. Uploads have as many halves.
constexpr int kSteps = 2;
static_assert(kSteps == StepUpload::kSteps);

class GpuStepSampler final : public StepSampler {
 public:
  static StatusOr<std::unique_ptr<StepSampler>> create(const StepSamplerLimits& limits, const Stream& stream) {
    std::unique_ptr<GpuStepSampler> sampler(new GpuStepSampler(limits, stream));
    const size_t results = static_cast<size_t>(kSteps) * limits.max_rows;
    ONEPASS_ASSIGN_OR_RETURN(sampler->last_tokens_,
                             DeviceBuffer::allocate(limits.max_slots * sizeof(int32_t), stream.device));
    ONEPASS_ASSIGN_OR_RETURN(sampler->results_, PinnedBuffer::allocate(results * sizeof(SampledRow)));
    ONEPASS_ASSIGN_OR_RETURN(sampler->top_logprobs_,
                             PinnedBuffer::allocate(results * kMaxSampleTops * sizeof(TopLogprob)));
    // Enough for the biases and end tokens of requests, and for short texts with penalties.
    ONEPASS_RETURN_IF_ERROR(sampler->reserve_adjustments(static_cast<size_t>(limits.max_rows) * 64));
    return std::unique_ptr<StepSampler>(std::move(sampler));
  }

  size_t upload_bytes() const override { return limits_.max_rows * sizeof(SampleRow) + StepUpload::kAlignment; }

  Status set_step(std::span<const SampleWork> work, int num_rows, StepUpload& upload) override {
    ONEPASS_CHECK_LE(num_rows, limits_.max_rows);
    ONEPASS_CHECK_LE(std::ssize(steps_) + (work.empty() ? 0 : 1), kSteps);
    const StepUpload::Array<SampleRow> rows = upload.reserve<SampleRow>(num_rows);
    std::fill(rows.host.begin(), rows.host.end(), SampleRow());
    rows_ = rows.device;
    num_rows_ = num_rows;
    has_work_ = !work.empty();
    if (!has_work_) return ok_status();
    current_ = (current_ + 1) % kSteps;
    steps_.push_back({current_, {work.begin(), work.end()}});
    draws_.clear();
    size_t num_adjustments = 0;
    for (const SampleWork& one : work) {
      draws_.push_back(one.sampler->begin_draw());
      num_adjustments += draws_.back().adjustments.size();
    }
    ONEPASS_RETURN_IF_ERROR(reserve_adjustments(num_adjustments));
    adjustments_.begin();
    for (size_t i = 0; i < work.size(); ++i) {
      const SamplingParams& params = work[i].sampler->params();
      const Sampler::Draw& draw = draws_[i];
      rows.host[i] = {.slot = work[i].slot,
                      .result = current_ * limits_.max_rows + static_cast<int32_t>(i),
                      .temperature = params.temperature,
                      .top_p = params.top_p,
                      .min_p = params.min_p,
                      .top_k = params.top_k,
                      .repetition_penalty = params.repetition_penalty,
                      .presence_penalty = params.presence_penalty,
                      .frequency_penalty = params.frequency_penalty,
                      .num_logprobs = params.logprobs,
                      .adjustments = adjustments_.add<LogitAdjustment>(draw.adjustments),
                      .num_adjustments = static_cast<int32_t>(draw.adjustments.size()),
                      .counts_last_token = draw.counts_last_token ? uint8_t{1} : uint8_t{0},
                      .seed = params.seed,
                      .draw = draw.index};
    }
    return num_adjustments > 0 ? adjustments_.send(stream_) : ok_status();
  }

  Status resolve(int32_t* ids, int count) override {
    return run_resolve_tokens_cuda({.ids = ids, .sampled = last_tokens_.as<int32_t>(), .count = count}, stream_.cuda);
  }

  Status sample(float* logits, int64_t row_stride) override {
    return run_sample_cuda({.logits = logits,
                            .row_stride = row_stride,
                            .vocab_size = limits_.vocab_size,
                            .num_rows = num_rows_,
                            .rows = rows_,
                            .tokens = last_tokens_.as<int32_t>(),
                            .results = results_.as<SampledRow>(),
                            .top_logprobs = top_logprobs_.as<TopLogprob>()},
                           stream_.cuda);
  }

  void cancel() override {
    if (!std::exchange(has_work_, false)) return;
    steps_.pop_back();
    current_ = (current_ + kSteps - 1) % kSteps;  // the half of the results is the next step's
  }

  std::vector<StatusOr<SampledToken>> collect() override {
    ONEPASS_CHECK(!steps_.empty());
    const Step step = std::move(steps_.front());
    steps_.pop_front();
    std::vector<StatusOr<SampledToken>> tokens;
    tokens.reserve(step.work.size());
    for (size_t i = 0; i < step.work.size(); ++i) {
      const size_t place = static_cast<size_t>(step.half) * limits_.max_rows + i;
      const SampledRow& row = results_.as<SampledRow>()[place];
      Sampler& sampler = *step.work[i].sampler;
      if (row.token < 0) {
        sampler.drop_draw();
        tokens.emplace_back(no_finite_logit());
        continue;
      }
      sampler.end_draw(row.token);
      SampledToken token{.token = row.token, .logprob = row.logprob};
      const int count = std::min(sampler.params().logprobs, limits_.vocab_size);
      const TopLogprob* const top = top_logprobs_.as<TopLogprob>() + place * kMaxSampleTops;
      for (int j = 0; j < count; ++j) token.top.push_back({top[j].token, top[j].logprob});
      tokens.emplace_back(std::move(token));
    }
    return tokens;
  }

 private:
  struct Step {
    int half;  // of the results
    std::vector<SampleWork> work;
  };

  GpuStepSampler(const StepSamplerLimits& limits, const Stream& stream) : limits_(limits), stream_(stream) {}

  // Rows say where their adjustments are, so that no graph does and their memory can grow. Steps that are under way may
  // still read the smaller one.
  Status reserve_adjustments(size_t count) {
    const size_t bytes = count * sizeof(LogitAdjustment) + limits_.max_rows * StepUpload::kAlignment;
    if (bytes <= adjustment_bytes_) return ok_status();
    const size_t wanted = 2 * bytes;
    ONEPASS_ASSIGN_OR_RETURN(StepUpload larger, StepUpload::create(wanted, stream_.device));
    outgrown_.push_back(std::exchange(adjustments_, std::move(larger)));
    adjustment_bytes_ = wanted;
    return ok_status();
  }

  const StepSamplerLimits limits_;
  const Stream stream_;
  DeviceBuffer last_tokens_;   // [max_slots]
  PinnedBuffer results_;       // SampledRow [kSteps, max_rows]
  PinnedBuffer top_logprobs_;  // TopLogprob [kSteps, max_rows, kMaxSampleTops]
  StepUpload adjustments_;
  size_t adjustment_bytes_ = 0;
  std::vector<StepUpload> outgrown_;

  int current_ = 0;
  const SampleRow* rows_ = nullptr;  // of the present step, on the device
  int num_rows_ = 0;
  bool has_work_ = false;
  std::vector<Sampler::Draw> draws_;  // scratch
  std::deque<Step> steps_;
};

}  // namespace

StatusOr<std::unique_ptr<StepSampler>> make_gpu_step_sampler(const StepSamplerLimits& limits, const Stream& stream) {
  return GpuStepSampler::create(limits, stream);
}

}  // namespace onepass
