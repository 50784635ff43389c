#include "attention/gpu_attention_backend.h"

namespace onepass {

StatusOr<std::unique_ptr<AttentionBackend>> make_gpu_attention_backend(const AttentionOptions&, KvPool&,
                                                                       const RequestTable&, const Stream&) {
  return unimplemented("attention: this binary was built without CUDA");
}

}  // namespace onepass
