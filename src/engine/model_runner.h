// A model on a device with its KV cache: batches in, logits or tokens out.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/attention_backend.h"
#include "engine/batch.h"
#include "engine/logits_buffer.h"
#include "engine/model_runner_options.h"
#include "engine/step_clock.h"
#include "engine/step_graphs.h"
#include "engine/step_sampler.h"
#include "kv_cache/kv_pool.h"
#include "kv_cache/request_table.h"
#include "models/decoder.h"
#include "models/model_config.h"
#include "tensor/cuda/cuda_stream.h"
#include "tensor/step_upload.h"

namespace onepass {

// What capturing took at the start.
struct GraphCapture {
  int count = 0;
  double seconds = 0.0;
  int64_t bytes = 0;  // of the GPU's memory
};

// Used by one thread at a time. Holds the request table and the pool; which pages belong to whom is the Engine's
// business.
class ModelRunner {
 public:
  // Loads the weights. An error names the file, tensor or option that is wrong, or the memory that is missing.
  static StatusOr<std::unique_ptr<ModelRunner>> create(const ModelRunnerOptions& options);
  ~ModelRunner();
  ModelRunner(const ModelRunner&) = delete;
  ModelRunner& operator=(const ModelRunner&) = delete;

  const ModelConfig& config() const { return decoder_->config(); }
  const Decoder& decoder() const { return *decoder_; }
  const ModelRunnerOptions& options() const { return options_; }  // with every default filled in
  const AttentionBackend& attention() const { return *backend_; }
  const Stream& stream() const { return stream_; }
  // For people: "cpu: 2 threads, avx512", "cuda:0: NVIDIA H100 80GB HBM3".
  std::string device_description() const;
  RequestTable& table() { return table_; }
  const KvPool& pool() const { return pool_; }

  // One step: stores the tokens' K and V and returns the logits of batch.output_rows, [rows, vocab_size] float32 in
  // host memory, valid until the next call (the caller may change them). An error is a GPU's. REQUIRES: token ids below
  // vocab_size; the batch keeps to the options' limits; fewer than kMaxStepsInFlight steps are in flight.
  StatusOr<std::span<float>> forward(const Batch& batch);

  // One step whose logits become tokens: output row i gives work[i]'s. A GPU has only been told to do it when this
  // returns; the CPU has done it. An error ends the step. REQUIRES: as forward(); as much work as output rows.
  static constexpr int kMaxStepsInFlight = 2;
  Status launch(const Batch& batch, std::span<const SampleWork> work);
  int num_in_flight() const { return static_cast<int>(in_flight_.size()); }
  // The tokens of the oldest step in flight, in the order of its work; waits for it. An error is a GPU's: none of its
  // tokens can be trusted. REQUIRES: there is one.
  StatusOr<std::vector<StatusOr<SampledToken>>> collect();

  // Decodes of a step, at most, that go through all layers in one kernel; 0: none do.
  int max_stacked_decodes() const { return stack_ == nullptr ? 0 : stack_->max_rows(); }

  const GraphCapture& graph_capture() const { return graph_capture_; }

  // What launched steps have taken of the device's time. Those in flight are not in it.
  const StepTimes& step_times() const { return clock_.times(); }

  // Copies K and V of the first `num_tokens` tokens of one page to another, in every layer.
  Status copy_page(int from, int to, int num_tokens) { return pool_.copy_page(from, to, num_tokens, stream_); }

 private:
  ModelRunner(const ModelRunnerOptions& options, std::unique_ptr<ThreadPool> threads, CudaStream cuda_stream,
              RequestTable table);

  // model_runner_memory.cc has these: what is allocated at the start.
  Status allocate();
  // The KV cache of `kv` and what holds its addresses but for graphs.
  Status allocate_cache(const KvPoolConfig& kv);
  void free_cache();
  // Graphs of `count` shapes from the first-th largest on.
  Status capture_graphs(size_t first, size_t count);
  Status capture_all_graphs();
  // Bytes of a GPU's memory that all this takes beside the cache itself, as a small one shows.
  StatusOr<int64_t> measure_beside_cache(KvPoolConfig kv);
  size_t num_graphs() const { return options_.cuda_graphs ? graphs_.shapes().size() : 0; }

  // A step in the device's memory.
  struct StepInput {
    ForwardInput forward;
    int32_t* ids = nullptr;  // forward's
  };
  // Puts a step's inputs into the upload.
  StatusOr<StepInput> set_inputs(const Batch& batch, std::span<const SampleWork> work);
  // The step's work on the device, after the upload: what else a graph holds.
  Status queue_step(const StepInput& input);
  // Both, by a graph where there is one. After an error nothing of the step is left.
  Status queue(const Batch& batch, std::span<const SampleWork> work);

  ModelRunnerOptions options_;
  int max_batch_requests_ = 0;  // padding included
  std::unique_ptr<ThreadPool> threads_;
  CudaStream cuda_stream_;
  Stream stream_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<DecoderOps> ops_;
  KvPool pool_;
  RequestTable table_;
  std::unique_ptr<AttentionBackend> backend_;
  std::unique_ptr<LayerStack> stack_;  // null: there is none
  DecoderWorkspace workspace_;
  StepUpload upload_;
  LogitsBuffer logits_;
  std::unique_ptr<StepSampler> sampler_;
  StepGraphs graphs_;
  GraphCapture graph_capture_;
  StepClock clock_;
  std::deque<bool> in_flight_;  // whether the step samples, of each that is
  Batch padded_;                // scratch
};

}  // namespace onepass
