// What a model is run with.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "attention/attention_backend.h"
#include "tensor/device.h"
#include "tensor/dtype.h"

namespace onepass {

struct ModelRunnerOptions {
  std::string model_dir;
  Device device;
  bool dummy_weights = false;  // random weights from config.json alone
  AttentionKind attention = AttentionKind::kFlash;
  // Logits follow, bit for bit, from a sequence's tokens: not from the batch, the chunks, the page size or the number
  // of threads. Costs prefill speed.
  bool deterministic = false;
  int page_size = 64;
  std::optional<DType> kv_dtype;  // unset: the dtype of the weights
  int num_threads = 0;            // 0: one for each processor that this process may use
  CpuIsa isa = best_cpu_isa();
  int context_length = 0;           // 0: the model's own; tokens of one sequence at most
  int max_requests = 1;             // sequences alive at the same time
  int64_t kv_tokens = 0;            // 0: max_requests times the context length, or what the memory fractions allow
  double kv_memory_fraction = 1.0;  // on the CPU, with kv_tokens 0: of the machine's memory, at most
  // Where the ways in which a GPU computes this model's layers fastest are kept: found at the first start, in seconds.
  // Empty: nowhere.
  std::string plan_file;
  // Steps of decodes, and of short prompts, are captured on a GPU at the start and replayed; otherwise they are padded
  // alike, so that the results are the same bits.
  bool cuda_graphs = true;
  // Steps of few decodes go through all layers in one kernel, where the GPU has one for the model. Not with
  // `deterministic`, nor with the reference attention.
  bool layer_stack = true;
  // Of a GPU's memory, for weights, workspace and KV cache together, beside what other programs hold. With kv_tokens
  // given, what does not keep to it is refused.
  double gpu_memory_fraction = 0.9;
  int max_tokens_per_step = 512;  // longer prompts are computed in chunks of this many
  int max_outputs_per_step = 0;   // rows of logits of one step; 0: max_requests
  // Called while the weights are loaded, when `done` of `total` parts are there.
  std::function<void(int done, int total)> on_load_progress;
};

}  // namespace onepass
