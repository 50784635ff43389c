// The tensors of a decoder, as its forward pass uses them.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "kernels/linear.h"
#include "models/model_config.h"
#include "models/weight_source.h"
#include "tensor/device_buffer.h"

namespace onepass {

// Numbers of a norm or a bias; empty: there is none.
struct FloatVector {
  const float* data = nullptr;
  int64_t size = 0;

  bool empty() const { return size == 0; }
};

// A dense layer: weights and a bias.
struct Linear {
  WeightMatrix weight;
  FloatVector bias;
};

struct LayerWeights {
  FloatVector input_norm;           // [hidden_size]
  Linear qkv;                       // [(num_heads + 2 num_kv_heads) * head_dim, hidden_size]
  FloatVector q_norm, k_norm;       // [head_dim]; empty: none
  Linear o;                         // [hidden_size, num_heads * head_dim]
  FloatVector post_attention_norm;  // [hidden_size]
  Linear gate_up;                   // [2 intermediate_size, hidden_size]
  Linear down;                      // [hidden_size, intermediate_size]
};

// All in memory of one device: on the CPU the matrices are where the source keeps them; on a GPU each is one slice.
struct DecoderWeights {
  WeightMatrix embedding;  // [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;
  FloatVector final_norm;
  const double* rope_inv_freq = nullptr;  // [head_dim / 2]
  WeightMatrix lm_head;                   // the embedding itself when they are tied

  // What owns the memory: the source, and what was copied or converted.
  std::unique_ptr<WeightSource> source;
  std::vector<DeviceBuffer> buffers;
};

struct WeightLoading {
  // Of a GPU's memory, what weights may take together with what is in use before.
  double gpu_memory_fraction = 1.0;
  // Called when `done` of `total` parts (the embedding, each layer, the rest) are in their place. Empty: nobody asks.
  std::function<void(int done, int total)> on_progress;
};

// Takes every tensor that the config asks for from `source` to the stream's device; an error names the first that is
// missing, has another shape or that the config does not account for. See models/weight_store.h for what becomes of
// dtypes.
// That a GPU's memory is too small is said before anything is read.
StatusOr<DecoderWeights> load_decoder_weights(const ModelConfig& config, std::unique_ptr<WeightSource> source,
                                              const Stream& stream, const WeightLoading& loading = {});

// Of a GPU's `total_bytes`, `free_bytes` are free: an error says that weights of so many bytes do not fit.
Status check_weights_fit(int64_t weight_bytes, int64_t free_bytes, int64_t total_bytes, double memory_fraction,
                         const Device& device);

}  // namespace onepass
