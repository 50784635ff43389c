#include "engine/step_sampler.h"

#include <deque>
#include <utility>

#include "base/check.h"
#include "base/thread_pool.h"

namespace onepass {
namespace {

class CpuStepSampler final : public StepSampler {
 public:
  CpuStepSampler(const StepSamplerLimits& limits, const Stream& stream)
      : vocab_size_(limits.vocab_size), pool_(stream.pool), last_tokens_(limits.max_slots, 0) {}

  size_t upload_bytes() const override { return 0; }

  Status set_step(std::span<const SampleWork> work, int, StepUpload&) override {
    work_.assign(work.begin(), work.end());
    return ok_status();
  }

  Status resolve(int32_t* ids, int count) override {
    for (int i = 0; i < count; ++i) {
      if (ids[i] < 0) ids[i] = last_tokens_.at(~ids[i]);
    }
    return ok_status();
  }

  Status sample(float* logits, int64_t row_stride) override {
    if (work_.empty()) return ok_status();
    std::vector<StatusOr<SampledToken>> tokens(work_.size(), SampledToken());
    pool_->parallel_dynamic(std::ssize(work_), [&](int64_t i, int) {
      const SampleWork& work = work_[i];
      tokens[i] = work.sampler->sample({logits + i * row_stride, static_cast<size_t>(vocab_size_)});
      if (tokens[i].ok()) last_tokens_[work.slot] = tokens[i]->token;
    });
    results_.push_back(std::move(tokens));
    return ok_status();
  }

  void cancel() override { work_.clear(); }

  std::vector<StatusOr<SampledToken>> collect() override {
    ONEPASS_CHECK(!results_.empty());
    std::vector<StatusOr<SampledToken>> oldest = std::move(results_.front());
    results_.pop_front();
    return oldest;
  }

 private:
  const int vocab_size_;
  ThreadPool* const pool_;
  std::vector<int32_t> last_tokens_;  // by slot
  std::vector<SampleWork> work_;      // of the present step
  std::deque<std::vector<StatusOr<SampledToken>>> results_;
};

}  // namespace

std::unique_ptr<StepSampler> make_cpu_step_sampler(const StepSamplerLimits& limits, const Stream& stream) {
  return std::make_unique<CpuStepSampler>(limits, stream);
}

StatusOr<std::unique_ptr<StepSampler>> make_step_sampler(const StepSamplerLimits& limits, const Stream& stream) {
  if (stream.device.kind == DeviceKind::kCuda) return make_gpu_step_sampler(limits, stream);
  return make_cpu_step_sampler(limits, stream);
}

}  // namespace onepass
