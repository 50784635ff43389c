#include "engine/model_runner.h"

#include <algorithm>

#include "base/check.h"
#include "engine/memory_budget.h"
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

  ONEPASS_ASSIGN_OR_RETURN(std::unique_ptr<Decoder> decoder,
                           Decoder::load({.model_dir = options.model_dir,
                                          .dummy_weights = options.dummy_weights,
                                          .loading = {.gpu_memory_fraction = options.gpu_memory_fraction,
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

  ONEPASS_RETURN_IF_ERROR(check_page_table(options));
  RequestTable table(options.max_requests, pages_of_request(options));
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
  return input;
}

Status ModelRunner::queue_step(const StepInput& input) {
  const bool stacked =
      stack_ != nullptr && input.forward.outputs_are_tokens && input.forward.num_tokens <= stack_->max_rows();
  // The plan is made beside what comes before the first attention.
  ONEPASS_RETURN_IF_ERROR(stacked ? backend_->place_pages(stream_) : backend_->plan(stream_));
  ONEPASS_RETURN_IF_ERROR(sampler_->resolve(input.ids, input.forward.num_tokens));
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
    if (graph == nullptr) {
      ONEPASS_RETURN_IF_ERROR(upload_.send(stream_));
      return queue_step(input);
    }
    ONEPASS_RETURN_IF_ERROR(upload_.send_with(*graph));
    return graph->launch(cuda_stream_);
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
