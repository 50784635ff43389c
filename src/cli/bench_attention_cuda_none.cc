// A build without CUDA has nothing to measure.
#include "cli/bench_attention.h"

namespace onepass {

Status bench_attention_cuda(const BenchAttentionOptions&) {
  return unimplemented("bench attention: device: expected cpu, found cuda (this program was built without CUDA)");
}

}  // namespace onepass
