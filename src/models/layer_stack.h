// All layers of a step of few decodes at once, where a device has one kernel for them: instead of DecoderOps and
// AttentionBackend::run(), layer by layer.
#pragma once

#include <memory>
#include <span>

#include "attention/attention_backend.h"
#include "models/decoder_weights.h"
#include "models/model_config.h"

namespace onepass {

class LayerStack {
 public:
  virtual ~LayerStack() = default;

  // Requests, one token each, of a step at most.
  virtual int max_rows() const = 0;

  // Takes the step's residual stream, hidden [num_rows, hidden_size], from the embedding to the end of the last layer,
  // and stores the new K and V. The backend has placed the same step's pages. On a GPU the work is queued, the same for
  // any step of so many rows. An error is that of a launch. REQUIRES: 1 to max_rows() rows.
  virtual Status run(int num_rows, float* hidden, const AttentionBackend& backend, const Stream& stream) = 0;
};

// Everything outlives the stack. Null where the device or the model has none: not an error.
struct LayerStackModel {
  const ModelConfig& config;
  const DecoderWeights& weights;
  std::span<const AttentionLayer> attention;
  KvPool& pool;
};
StatusOr<std::unique_ptr<LayerStack>> make_layer_stack(const LayerStackModel& model, const Stream& stream);

// In a file of its own.
StatusOr<std::unique_ptr<LayerStack>> make_gpu_layer_stack(const LayerStackModel& model, const Stream& stream);

}  // namespace onepass
