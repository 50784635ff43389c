// What a binary built without nvcc says when a GPU is asked for.
#include "models/decoder_ops.h"
#include "models/layer_stack.h"
#include "models/weight_store.h"

namespace onepass {

StatusOr<std::unique_ptr<DecoderOps>> make_gpu_decoder_ops(const DecoderOpsOptions&, const Stream&) {
  return unimplemented("this binary was built without CUDA");
}

StatusOr<std::unique_ptr<LayerStack>> make_gpu_layer_stack(const LayerStackModel&, const Stream&) {
  return unimplemented("this binary was built without CUDA");
}

StatusOr<std::unique_ptr<WeightStore>> make_gpu_weight_store(WeightSource&, const Stream&) {
  return unimplemented("this binary was built without CUDA");
}

}  // namespace onepass
