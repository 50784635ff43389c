#include "models/layer_stack.h"

namespace onepass {

StatusOr<std::unique_ptr<LayerStack>> make_layer_stack(const LayerStackModel& model, const Stream& stream) {
  if (stream.device.kind == DeviceKind::kCpu) return std::unique_ptr<LayerStack>();
  return make_gpu_layer_stack(model, stream);
}

}  // namespace onepass
