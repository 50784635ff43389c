#include "engine/step_sampler.h"

namespace onepass {

StatusOr<std::unique_ptr<StepSampler>> make_gpu_step_sampler(const StepSamplerLimits&, const Stream&) {
  return unimplemented("sampling: this binary was built without CUDA");
}

}  // namespace onepass
