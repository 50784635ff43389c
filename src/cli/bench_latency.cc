// onepass bench latency: a fixed batch, fixed input and output lengths.
#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>

#include "cli/command.h"
#include "cli/options.h"
#include "engine/engine.h"
#include "kernels/cpu/peaks.h"

namespace onepass {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct LatencyOptions {
  EngineOptions engine;
  bool dummy_weights = false;
  int batch_size = 1;
  int input_len = 512;
  int output_len = 64;
  int iterations = 3;
  int warmup = 1;
  bool peaks = false;
  bool json = false;
};

struct Iteration {
  double prefill_seconds = 0.0;
  std::vector<double> step_seconds;  // one a decode step
};

double median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Prompts of random tokens, one after the other; then all decode together, greedily. On a GPU a step is launched before
// the tokens of the one before it are known, as the scheduler does.
StatusOr<Iteration> run_once(Engine& engine, const LatencyOptions& options, std::mt19937& random) {
  const int vocab_size = engine.config().vocab_size;
  std::uniform_int_distribution<int32_t> token(0, vocab_size - 1);
  std::vector<Sequence> sequences;
  std::vector<Sampler> greedy(options.batch_size, Sampler({.temperature = 0.0f}, {}, {}));
  std::vector<Sampler*> samplers;
  std::vector<Engine::Work> work;
  sequences.reserve(options.batch_size);
  for (int i = 0; i < options.batch_size; ++i) {
    ONEPASS_ASSIGN_OR_RETURN(Sequence sequence, engine.open());
    for (int j = 0; j < options.input_len; ++j) sequence.tokens.push_back(token(random));
    sequences.push_back(std::move(sequence));
    samplers.push_back(&greedy[i]);
    work.push_back({.sequence = &sequences.back(), .num_tokens = 1});
  }
  Iteration result;
  const Clock::time_point start = Clock::now();
  const int chunk = engine.runner().options().max_tokens_per_step;
  for (int i = 0; i < options.batch_size; ++i) {
    while (sequences[i].num_pending() > chunk) {
      const Engine::Work part{.sequence = &sequences[i], .num_tokens = chunk, .num_outputs = 0};
      ONEPASS_RETURN_IF_ERROR(engine.step({&part, 1}).status());
    }
    const Engine::Work last{.sequence = &sequences[i], .num_tokens = sequences[i].num_pending()};
    ONEPASS_RETURN_IF_ERROR(engine.launch({&last, 1}, {&samplers[i], 1}));
    ONEPASS_RETURN_IF_ERROR(engine.collect().status());
  }
  result.prefill_seconds = seconds_since(start);
  Clock::time_point step_start = Clock::now();
  const int steps_in_flight = engine.runner().stream().device.kind == DeviceKind::kCuda ? 2 : 1;
  int launched = 0;
  for (int step = 1; step < options.output_len; ++step) {
    for (; launched < options.output_len - 1 && launched < step - 1 + steps_in_flight; ++launched) {
      ONEPASS_RETURN_IF_ERROR(engine.launch(work, samplers));
    }
    ONEPASS_RETURN_IF_ERROR(engine.collect().status());
    const Clock::time_point now = Clock::now();
    result.step_seconds.push_back(std::chrono::duration<double>(now - step_start).count());
    step_start = now;
  }
  for (Sequence& sequence : sequences) engine.close(sequence);
  return result;
}

Status run(const LatencyOptions& options) {
  const Clock::time_point start = Clock::now();
  ONEPASS_ASSIGN_OR_RETURN(ModelRunnerOptions runner_options, options.engine.runner_options());
  ONEPASS_ASSIGN_OR_RETURN(const ModelConfig config, load_model_config(runner_options.model_dir));
  const int context =
      runner_options.context_length > 0 ? runner_options.context_length : config.max_position_embeddings;
  if (int64_t{options.input_len} + options.output_len > context) {
    return invalid_argument("input and output length: ", options.input_len, " + ", options.output_len,
                            " tokens, more than the context of ", context);
  }
  runner_options.dummy_weights = options.dummy_weights;
  runner_options.max_requests = options.batch_size;
  runner_options.kv_tokens =
      options.batch_size * (int64_t{options.input_len} + options.output_len + runner_options.page_size);
  ONEPASS_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::create(runner_options));
  const double load_seconds = seconds_since(start);
  std::mt19937 random(1);
  for (int i = 0; i < options.warmup; ++i) {
    ONEPASS_RETURN_IF_ERROR(run_once(*engine, options, random).status());
  }
  std::vector<double> prefills, steps;
  for (int i = 0; i < options.iterations; ++i) {
    ONEPASS_ASSIGN_OR_RETURN(const Iteration iteration, run_once(*engine, options, random));
    prefills.push_back(iteration.prefill_seconds);
    steps.insert(steps.end(), iteration.step_seconds.begin(), iteration.step_seconds.end());
  }
  const double prefill = median(prefills);
  const double step = median(steps);
  const double input_tokens = static_cast<double>(options.batch_size) * options.input_len;
  // What a step must read and compute: all weights that a token meets once, and two operations a weight and token.
  const double weight_bytes = static_cast<double>(engine->runner().decoder().weight_bytes_per_step());
  const double flops_per_token = engine->runner().decoder().flops_per_token();
  nlohmann::json output = {
      {"model", options.engine.model_dir()},
      {"device", to_string(engine->runner().options().device)},
      {"batch_size", options.batch_size},
      {"input_len", options.input_len},
      {"output_len", options.output_len},
      {"iterations", options.iterations},
      {"load_seconds", load_seconds},
      {"prefill_latency_ms", prefill * 1e3},
      {"prefill_tok_per_s", input_tokens / prefill},
      {"prefill_gflop_per_s", input_tokens * flops_per_token / prefill * 1e-9},
      {"decode_latency_ms", step * 1e3},
      {"decode_tok_per_s", step > 0 ? options.batch_size / step : 0.0},
      {"decode_weight_gb_per_s", step > 0 ? weight_bytes / step * 1e-9 : 0.0},
  };
  if (engine->runner().options().device.kind == DeviceKind::kCpu) {
    output["threads"] = engine->runner().options().num_threads;
    output["isa"] = to_string(engine->runner().options().isa);
  }
  const GraphCapture& graphs = engine->runner().graph_capture();
  if (graphs.count > 0) {
    output["cuda_graphs"] = graphs.count;
    output["cuda_graph_seconds"] = graphs.seconds;
    output["cuda_graph_bytes"] = graphs.bytes;
  }
  const int stacked_decodes = engine->runner().max_stacked_decodes();
  if (stacked_decodes > 0) output["layer_stack_decodes"] = stacked_decodes;
  if (options.peaks) {
    const Stream& stream = engine->runner().stream();
    const double bandwidth = measure_dram_read_bandwidth(stream);
    const double bf16 = measure_bf16_dot_peak(stream);
    const double matrix = bf16 > 0 ? bf16 : measure_fp32_fma_peak(stream);
    output["peak_dram_read_gb_per_s"] = bandwidth;
    output["peak_matrix_gflop_per_s"] = matrix;
    output["prefill_of_peak"] = output["prefill_gflop_per_s"].get<double>() / matrix;
    output["decode_of_bandwidth"] = output["decode_weight_gb_per_s"].get<double>() / bandwidth;
  }
  if (options.json) {
    std::printf("%s\n", output.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return ok_status();
  }
  std::printf("%s, %s, batch %d, input %d, output %d, median of %d\n", options.engine.model_dir().c_str(),
              engine->runner().device_description().c_str(), options.batch_size, options.input_len, options.output_len,
              options.iterations);
  std::printf("  load     %9.2f s\n", load_seconds);
  if (graphs.count > 0) {
    std::printf("  capture  %9.2f s    %10d graphs   %8.1f MiB\n", graphs.seconds, graphs.count,
                static_cast<double>(graphs.bytes) / (1 << 20));
  }
  if (stacked_decodes > 0) std::printf("  layers   in one kernel for up to %d decodes\n", stacked_decodes);
  std::printf("  prefill  %9.2f ms   %10.1f tok/s   %8.1f GFLOP/s\n", prefill * 1e3, input_tokens / prefill,
              output["prefill_gflop_per_s"].get<double>());
  if (!steps.empty()) {
    std::printf("  decode   %9.2f ms   %10.1f tok/s   %8.1f GB/s of weights\n", step * 1e3, options.batch_size / step,
                weight_bytes / step * 1e-9);
  }
  if (options.peaks) {
    std::printf(
        "  machine  %.1f GB/s DRAM read, %.1f GFLOP/s: prefill %.1f%% of the rate, decode %.1f%% of the bandwidth\n",
        output["peak_dram_read_gb_per_s"].get<double>(), output["peak_matrix_gflop_per_s"].get<double>(),
        output["prefill_of_peak"].get<double>() * 100, output["decode_of_bandwidth"].get<double>() * 100);
  }
  return ok_status();
}

}  // namespace

void add_bench_latency_command(CLI::App& bench, Action& action) {
  CLI::App* command = bench.add_subcommand("latency", "Prefill and decode latency of a fixed batch");
  auto options = std::make_shared<LatencyOptions>();
  options->engine.add_to(*command);
  command->add_flag("--dummy-weights", options->dummy_weights, "random weights: the folder needs a config.json alone");
  command->add_option("--batch-size", options->batch_size)->check(CLI::Range(1, 4096))->capture_default_str();
  command->add_option("--input-len", options->input_len)->check(CLI::Range(1, INT_MAX))->capture_default_str();
  command->add_option("--output-len", options->output_len)->check(CLI::Range(1, INT_MAX))->capture_default_str();
  command->add_option("--iterations", options->iterations)->check(CLI::Range(1, INT_MAX))->capture_default_str();
  command->add_option("--warmup", options->warmup)->check(CLI::Range(0, INT_MAX))->capture_default_str();
  command->add_flag("--peaks", options->peaks,
                    "measure this machine's bandwidth and arithmetic peak too, and print the ratios");
  command->add_flag("--json", options->json);
  command->callback([options, &action] {
    options->engine.check();
    const StatusOr<ModelRunnerOptions> runner = options->engine.runner_options();
    if (options->peaks && runner.ok() && runner->device.kind == DeviceKind::kCuda) {
      refuse_usage(unimplemented("--peaks: expected --device cpu, found ", to_string(runner->device)));
    }
    action = [options] { return run(*options); };
  });
}

}  // namespace onepass
