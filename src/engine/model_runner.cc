#include "engine/model_runner.h"

#include <algorithm>

#include "base/check.h"
#include "base/memory_info.h"

namespace onepass {
StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::create(const ModelRunnerOptions& given) {
  ModelRunnerOptions options = given;
  if (options.num_threads == 0) options.num_threads = available_processors();
  auto threads = std::make_unique<ThreadPool>(options.num_threads);
  const Stream stream{.pool = threads.get(), .isa = options.isa};

  ONEPASS_ASSIGN_OR_RETURN(
      std::unique_ptr<Decoder> decoder,
      Decoder::load({.model_dir = options.model_dir, .dummy_weights = options.dummy_weights}, stream));
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

  const auto pages = [&](int64_t tokens) { return (tokens + options.page_size - 1) / options.page_size; };
  KvPoolConfig kv = {.num_layers = config.num_layers,
                     .num_pages = 0,
                     .page_size = options.page_size,
                     .num_kv_heads = config.num_kv_heads,
                     .head_dim = config.head_dim,
                     .head_dim_v = config.head_dim,
                     .dtype = *options.kv_dtype};
  int64_t num_pages = pages(options.kv_tokens);
  if (options.kv_tokens == 0) {
    num_pages = options.max_requests * pages(options.context_length);
    if (options.kv_memory_fraction < 1.0) {
      const double bytes = options.kv_memory_fraction * static_cast<double>(machine_memory());
      num_pages =
          std::clamp<int64_t>(static_cast<int64_t>(bytes / static_cast<double>(kv.bytes_per_page())), 1, num_pages);
    }
  }
  ++num_pages;  // page 0 is the dummy request's
  if (num_pages > INT32_MAX / 2) {
    return invalid_argument("KV cache: ", num_pages, " pages of ", options.page_size,
                            " tokens are more than can be numbered");
  }
  kv.num_pages = static_cast<int>(num_pages);
  ONEPASS_ASSIGN_OR_RETURN(KvPool pool, KvPool::create(kv));
  RequestTable table(options.max_requests, static_cast<int>(pages(options.context_length)));
  std::unique_ptr<ModelRunner> runner(
      new ModelRunner(options, std::move(threads), std::move(decoder), std::move(pool), std::move(table)));
  const AttentionOptions attention{.kind = options.attention,
                                   .max_requests = options.max_requests,
                                   .max_tokens = options.max_tokens_per_step,
                                   .batch_invariant = options.deterministic};
  ONEPASS_ASSIGN_OR_RETURN(runner->backend_,
                           make_attention_backend(attention, runner->pool_, runner->table_, runner->stream_));
  ONEPASS_ASSIGN_OR_RETURN(runner->workspace_, DecoderWorkspace::create(config, options.max_tokens_per_step));
  ONEPASS_ASSIGN_OR_RETURN(runner->logits_, Buffer::allocate(static_cast<size_t>(options.max_outputs_per_step) *
                                                             config.vocab_size * sizeof(float)));
  return runner;
}

ModelRunner::ModelRunner(const ModelRunnerOptions& options, std::unique_ptr<ThreadPool> threads,
                         std::unique_ptr<Decoder> decoder, KvPool pool, RequestTable table)
    : options_(options),
      threads_(std::move(threads)),
      stream_{.pool = threads_.get(), .isa = options.isa},
      decoder_(std::move(decoder)),
      pool_(std::move(pool)),
      table_(std::move(table)) {}

std::span<float> ModelRunner::forward(const Batch& batch) {
  const int num_outputs = static_cast<int>(batch.output_rows.size());
  ONEPASS_CHECK_LE(batch.num_tokens(), options_.max_tokens_per_step);
  ONEPASS_CHECK_LE(num_outputs, options_.max_outputs_per_step);
  backend_->plan(batch.attention(), stream_);
  decoder_->forward({.num_tokens = batch.num_tokens(),
                     .input_ids = batch.input_ids.data(),
                     .positions = batch.positions.data(),
                     .num_output_rows = num_outputs,
                     .output_rows = batch.output_rows.data()},
                    *backend_, logits_.as<float>(), workspace_, stream_);
  return {logits_.as<float>(), static_cast<size_t>(num_outputs) * config().vocab_size};
}

}  // namespace onepass
