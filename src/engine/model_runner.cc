#include "engine/model_runner.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/check.h"
#include "base/memory_info.h"
#include "tensor/cuda/cuda_copy.h"
#include "tensor/cuda_info.h"

namespace onepass {

static_assert(ModelRunner::kMaxStepsInFlight <= StepUpload::kSteps);
static_assert(ModelRunner::kMaxStepsInFlight <= StepClock::kMostInFlight);

namespace {

Status check_gpu(const Device& device) {
  const StatusOr<GpuInfo> found = query_gpu(device.index);
  if (!found.ok()) return annotate(found.status(), "device ", to_string(device));
  const GpuInfo& gpu = *found;
  if (!gpu.usable) {
    return unimplemented("GPU ", device.index, ": this binary has no code for ", gpu.name, " (compute capability ",
                         gpu.compute_capability / 10, ".", gpu.compute_capability % 10, ")");
  }
  return set_current_gpu(device.index);
}

StatusOr<int64_t> used_gpu_memory() {
  ONEPASS_ASSIGN_OR_RETURN(const CudaMemory memory, cuda_memory());
  return static_cast<int64_t>(memory.total - memory.free);
}

int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

}  // namespace

StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::create(const ModelRunnerOptions& given) {
  ModelRunnerOptions options = given;
  if (options.num_threads == 0) options.num_threads = available_processors();
  auto threads = std::make_unique<ThreadPool>(options.num_threads);
  CudaStream cuda_stream;
  if (options.device.kind == DeviceKind::kCuda) {
    ONEPASS_RETURN_IF_ERROR(check_gpu(options.device));
    ONEPASS_ASSIGN_OR_RETURN(cuda_stream, CudaStream::create());
  }
  const Stream stream{.device = options.device, .pool = threads.get(), .isa = options.isa, .cuda = cuda_stream.get()};

  ONEPASS_ASSIGN_OR_RETURN(
      std::unique_ptr<Decoder> decoder,
      Decoder::load({.model_dir = options.model_dir,
                     .dummy_weights = options.dummy_weights,
                     .loading = {.gpu_memory_fraction = options.kv_tokens == 0 ? options.gpu_memory_fraction : 1.0,
                                 .on_progress = options.on_load_progress}},
                    stream));
  const ModelConfig& config = decoder->config();
  if (options.context_length > config.max_position_embeddings) {
    return invalid_argument("context length: the model was made for ", config.max_position_embeddings,
                            " tokens, found ", options.context_length);
  }
  if (options.context_length == 0) options.context_length = config.max_position_embeddings;
  if (options.max_outputs_per_step == 0) options.max_outputs_per_step = options.max_requests;
  if (!options.kv_dtype) options.kv_dtype = decoder->weights_dtype();
  const int64_t all_tokens = int64_t{options.context_length} * options.max_requests;
  options.max_tokens_per_step =
      std::max(options.max_requests, static_cast<int>(std::min<int64_t>(options.max_tokens_per_step, all_tokens)));

  RequestTable table(options.max_requests, static_cast<int>(divide_up(options.context_length, options.page_size)));
  std::unique_ptr<ModelRunner> runner(
      new ModelRunner(options, std::move(threads), std::move(cuda_stream), std::move(table)));
  runner->decoder_ = std::move(decoder);
  ONEPASS_RETURN_IF_ERROR(runner->allocate());
  return runner;
}

ModelRunner::ModelRunner(const ModelRunnerOptions& options, std::unique_ptr<ThreadPool> threads, CudaStream cuda_stream,
                         RequestTable table)
    : options_(options),
      threads_(std::move(threads)),
      cuda_stream_(std::move(cuda_stream)),
      stream_{.device = options.device, .pool = threads_.get(), .isa = options.isa, .cuda = cuda_stream_.get()},
      table_(std::move(table)) {}

ModelRunner::~ModelRunner() {
  // Steps in flight read what goes now.
  if (stream_.device.kind == DeviceKind::kCuda) (void)synchronize(stream_.cuda);
}

// What a step works in; the KV cache last, as it takes what is left.
Status ModelRunner::allocate() {
  ONEPASS_ASSIGN_OR_RETURN(ops_, make_decoder_ops({.weights_dtype = decoder_->weights_dtype(),
                                                   .batch_invariant = options_.deterministic,
                                                   .plan_file = options_.plan_file},
                                                  stream_));
  const bool is_on_gpu = options_.device.kind == DeviceKind::kCuda;
  DecoderWorkspace::Limits limits{.max_tokens = options_.max_tokens_per_step,
                                  .max_outputs = options_.max_outputs_per_step};
  max_batch_requests_ = options_.max_requests;
  if (is_on_gpu) {
    graphs_ = StepGraphs(std::min(options_.max_requests, options_.max_outputs_per_step), options_.max_tokens_per_step);
    max_batch_requests_ = std::max(max_batch_requests_, StepGraphs::kPrefillRequests);
    limits.max_outputs = std::max(limits.max_outputs, StepGraphs::kPrefillRequests);
  }
  ONEPASS_ASSIGN_OR_RETURN(workspace_,
                           DecoderWorkspace::create(config(), limits, ops_->activation_dtype(), stream_.device));
  ONEPASS_ASSIGN_OR_RETURN(logits_, LogitsBuffer::create(limits.max_outputs, config().vocab_size, stream_.device));
  ONEPASS_ASSIGN_OR_RETURN(sampler_, make_step_sampler({.vocab_size = config().vocab_size,
                                                        .max_slots = options_.max_requests,
                                                        .max_rows = limits.max_outputs},
                                                       stream_));
  ONEPASS_ASSIGN_OR_RETURN(clock_, StepClock::create(stream_.device));
  ONEPASS_RETURN_IF_ERROR(decoder_->prepare(*ops_, limits, logits_.row_stride()));

  KvPoolConfig kv = {.num_layers = config().num_layers,
                     .num_pages = 0,
                     .page_size = options_.page_size,
                     .num_kv_heads = config().num_kv_heads,
                     .head_dim = config().head_dim,
                     .head_dim_v = config().head_dim,
                     .dtype = options_.kv_dtype.value_or(decoder_->weights_dtype())};
  int64_t beside_cache = 0;
  if (is_on_gpu && options_.kv_tokens == 0) {
    ONEPASS_ASSIGN_OR_RETURN(beside_cache, measure_beside_cache(kv));
  }
  ONEPASS_ASSIGN_OR_RETURN(kv.num_pages, count_pages(kv, beside_cache));
  ONEPASS_RETURN_IF_ERROR(allocate_cache(kv));
  if (num_graphs() == 0) return ok_status();
  const auto start = std::chrono::steady_clock::now();
  ONEPASS_ASSIGN_OR_RETURN(const int64_t before, used_gpu_memory());
  ONEPASS_RETURN_IF_ERROR(capture_graphs(0, num_graphs()));
  ONEPASS_ASSIGN_OR_RETURN(const int64_t after, used_gpu_memory());
  graph_capture_ = {.count = static_cast<int>(num_graphs()),
                    .seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(),
                    .bytes = after - before};
  return ok_status();
}

Status ModelRunner::allocate_cache(const KvPoolConfig& kv) {
  ONEPASS_ASSIGN_OR_RETURN(pool_, KvPool::create(kv, stream_.device));
  const AttentionOptions attention{.kind = options_.attention,
                                   .max_requests = max_batch_requests_,
                                   .max_tokens = options_.max_tokens_per_step,
                                   .batch_invariant = options_.deterministic,
                                   .layers = decoder_->attention_layers(),
                                   .activation_dtype = ops_->activation_dtype()};
  ONEPASS_ASSIGN_OR_RETURN(backend_, make_attention_backend(attention, pool_, table_, stream_));
  if (options_.layer_stack && !options_.deterministic && options_.attention == AttentionKind::kFlash) {
    ONEPASS_ASSIGN_OR_RETURN(stack_, decoder_->make_stack(pool_, stream_));
  }
  const size_t ids = options_.max_tokens_per_step * sizeof(int32_t) + StepUpload::kAlignment;
  const size_t rows = workspace_.limits.max_outputs * sizeof(int32_t) + StepUpload::kAlignment;
  ONEPASS_ASSIGN_OR_RETURN(
      upload_, StepUpload::create(ids + rows + sampler_->upload_bytes() + backend_->upload_bytes(), stream_.device));
  return ok_status();
}

void ModelRunner::free_cache() {
  graphs_.clear();
  upload_ = StepUpload();
  stack_.reset();
  backend_.reset();
  pool_ = KvPool();
}

StatusOr<int64_t> ModelRunner::measure_beside_cache(KvPoolConfig kv) {
  kv.num_pages = 2;
  ONEPASS_ASSIGN_OR_RETURN(const int64_t before, used_gpu_memory());
  ONEPASS_RETURN_IF_ERROR(allocate_cache(kv));
  // The first graph may be the first to use a kernel; the second one shows what each of the others takes.
  const size_t captured = std::min<size_t>(2, num_graphs());
  int64_t last_graph = 0;
  for (size_t i = 0; i < captured; ++i) {
    ONEPASS_ASSIGN_OR_RETURN(const int64_t without, used_gpu_memory());
    ONEPASS_RETURN_IF_ERROR(capture_graphs(i, 1));
    ONEPASS_ASSIGN_OR_RETURN(const int64_t with, used_gpu_memory());
    last_graph = with - without;
  }
  ONEPASS_ASSIGN_OR_RETURN(const int64_t now, used_gpu_memory());
  free_cache();
  return now - before + static_cast<int64_t>(num_graphs() - captured) * last_graph;
}

Status ModelRunner::capture_graphs(size_t first, size_t count) {
  for (size_t i = first; i < first + count; ++i) {
    const StepShape shape = graphs_.shapes()[i];
    StepInput input;
    const auto prepare = [&]() -> Status {
      padded_.clear();
      padded_.pad(shape);
      ONEPASS_ASSIGN_OR_RETURN(input, set_inputs(padded_, {}));
      return ok_status();
    };
    ONEPASS_RETURN_IF_ERROR(graphs_.capture(shape, cuda_stream_, prepare, [&] { return queue_step(input); }));
  }
  return ok_status();
}

StatusOr<int> ModelRunner::count_pages(const KvPoolConfig& kv, int64_t beside_cache) const {
  int64_t pages = divide_up(options_.kv_tokens, options_.page_size);
  if (options_.kv_tokens == 0) {
    pages = options_.max_requests * divide_up(options_.context_length, options_.page_size);
    double available = options_.kv_memory_fraction * static_cast<double>(machine_memory());
    bool is_limited = options_.kv_memory_fraction < 1.0;
    if (options_.device.kind == DeviceKind::kCuda) {
      ONEPASS_ASSIGN_OR_RETURN(const CudaMemory memory, cuda_memory());
      const double used = static_cast<double>(memory.total - memory.free);
      available =
          options_.gpu_memory_fraction * static_cast<double>(memory.total) - used - static_cast<double>(beside_cache);
      const auto page = static_cast<double>(kv.bytes_per_page());
      if (available < 2 * page) {  // one is the dummy request's
        const double needed = (used + static_cast<double>(beside_cache) + 2 * page) / static_cast<double>(memory.total);
        return resource_exhausted(
            "KV cache: expected room for one page of ", options_.page_size, " tokens (", kv.bytes_per_page(),
            " bytes) beside weights, workspace, graphs and other programs (", memory.total - memory.free + beside_cache,
            " bytes) in ", options_.gpu_memory_fraction, " of the GPU's ", memory.total, " bytes; ",
            needed <= 1.0 ? str_cat("a memory fraction of ", std::ceil(needed * 1000) / 1000, " has it")
                          : "the model does not fit");
      }
      available -= page;  // the dummy request's
      is_limited = true;
    }
    if (is_limited) {
      pages = std::clamp<int64_t>(static_cast<int64_t>(available / static_cast<double>(kv.bytes_per_page())), 1, pages);
    }
  }
  ++pages;  // page 0 is the dummy request's
  if (pages > INT32_MAX / 2) {
    return invalid_argument("KV cache: ", pages, " pages of ", options_.page_size,
                            " tokens are more than can be numbered");
  }
  return static_cast<int>(pages);
}

std::string ModelRunner::device_description() const {
  const std::string device = to_string(stream_.device);
  if (stream_.device.kind == DeviceKind::kCpu) {
    return str_cat(device, ": ", options_.num_threads, " threads, ", to_string(options_.isa));
  }
  const StatusOr<GpuInfo> gpu = query_gpu(stream_.device.index);
  return gpu.ok() ? str_cat(device, ": ", gpu->name) : device;
}

StatusOr<ModelRunner::StepInput> ModelRunner::set_inputs(const Batch& batch, std::span<const SampleWork> work) {
  upload_.begin();
  const StepUpload::Array<int32_t> ids = upload_.reserve<int32_t>(batch.input_ids.size());
  std::copy(batch.input_ids.begin(), batch.input_ids.end(), ids.host.begin());
  const int num_output_rows = static_cast<int>(batch.output_rows.size());
  const StepInput input{.forward = {.num_tokens = batch.num_tokens(),
                                    .input_ids = ids.device,
                                    .num_output_rows = num_output_rows,
                                    .output_rows = upload_.add<int32_t>(batch.output_rows),
                                    .outputs_are_tokens = batch.is_decode(),
                                    .logits = logits_.data(),
                                    .logits_row_stride = logits_.row_stride()},
                        .ids = ids.device};
  ONEPASS_RETURN_IF_ERROR(sampler_->set_step(work, num_output_rows, upload_));
  backend_->set_batch(batch.attention(), upload_);  // last: what it adds can differ from step to step
  ONEPASS_RETURN_IF_ERROR(upload_.send(stream_));
  return input;
}

Status ModelRunner::queue_step(const StepInput& input) {
  ONEPASS_RETURN_IF_ERROR(sampler_->resolve(input.ids, input.forward.num_tokens));
  const bool stacked =
      stack_ != nullptr && input.forward.outputs_are_tokens && input.forward.num_tokens <= stack_->max_rows();
  ONEPASS_RETURN_IF_ERROR(stacked ? backend_->place_pages(stream_) : backend_->plan(stream_));
  ONEPASS_RETURN_IF_ERROR(
      decoder_->forward(input.forward, *ops_, *backend_, workspace_, stream_, stacked ? stack_.get() : nullptr));
  return input.forward.num_output_rows > 0 ? sampler_->sample(logits_.data(), logits_.row_stride()) : ok_status();
}

Status ModelRunner::queue(const Batch& batch, std::span<const SampleWork> work) {
  const int num_outputs = static_cast<int>(batch.output_rows.size());
  ONEPASS_CHECK_LE(batch.num_tokens(), options_.max_tokens_per_step);
  ONEPASS_CHECK_LE(num_outputs, options_.max_outputs_per_step);
  ONEPASS_CHECK_LE(num_in_flight() + 1, kMaxStepsInFlight);
  // The scheduler's thread is not the one that loaded the model.
  const bool is_on_gpu = stream_.device.kind == DeviceKind::kCuda;
  if (is_on_gpu) ONEPASS_RETURN_IF_ERROR(set_current_gpu(stream_.device.index));

  const std::optional<StepShape> shape = graphs_.shape_for(batch);
  if (shape) {
    padded_ = batch;
    padded_.pad(*shape);
  }
  const CudaGraph* const graph = shape ? graphs_.graph(*shape) : nullptr;
  Status queued = [&]() -> Status {
    ONEPASS_ASSIGN_OR_RETURN(const StepInput input, set_inputs(shape ? padded_ : batch, work));
    ONEPASS_RETURN_IF_ERROR(clock_.start(cuda_stream_));
    return graph != nullptr ? graph->launch(cuda_stream_) : queue_step(input);
  }();
  if (!queued.ok()) {
    sampler_->cancel();
    // What is queued still reads the page-locked memory that the next step writes.
    if (is_on_gpu) (void)synchronize(stream_.cuda);
  }
  return queued;
}

StatusOr<std::span<float>> ModelRunner::forward(const Batch& batch) {
  ONEPASS_RETURN_IF_ERROR(queue(batch, {}));
  return logits_.download(static_cast<int>(batch.output_rows.size()), stream_);
}

Status ModelRunner::launch(const Batch& batch, std::span<const SampleWork> work) {
  ONEPASS_CHECK_EQ(work.size(), batch.output_rows.size());
  ONEPASS_RETURN_IF_ERROR(queue(batch, work));
  if (Status stopped = clock_.stop(cuda_stream_); !stopped.ok()) {
    sampler_->cancel();
    return stopped;
  }
  in_flight_.push_back(!work.empty());
  return ok_status();
}

StatusOr<std::vector<StatusOr<SampledToken>>> ModelRunner::collect() {
  ONEPASS_CHECK(!in_flight_.empty());
  const bool samples = in_flight_.front();
  in_flight_.pop_front();
  Status done = clock_.wait();
  std::vector<StatusOr<SampledToken>> tokens;
  if (samples) tokens = sampler_->collect();
  if (!done.ok()) return done;
  return tokens;
}

}  // namespace onepass
