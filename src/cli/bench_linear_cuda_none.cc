// A build without CUDA has nothing to measure.
#include "cli/bench_linear.h"

namespace onepass {

Status bench_linear_cuda(const BenchLinearOptions&) {
  return unimplemented("bench linear: device: found cuda, but this program was built without CUDA");
}

}  // namespace onepass
