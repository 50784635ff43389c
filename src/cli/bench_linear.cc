// onepass bench linear: a model's dense layers on a GPU, beside its bandwidth.
#include "cli/bench_linear.h"

#include "cli/command.h"
#include "cli/options.h"
#include "models/model_config.h"
#include "tensor/dtype.h"

namespace onepass {
namespace {

std::vector<LinearLayerShape> shapes_of(const std::string& name, const ModelConfig& config) {
  const int64_t hidden = config.hidden_size, heads = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_heads = int64_t{config.num_kv_heads} * config.head_dim;
  return {{.name = name + " qkv", .rows = heads + 2 * kv_heads, .cols = hidden},
          {.name = name + " o", .rows = hidden, .cols = heads},
          {.name = name + " gate_up", .rows = 2 * int64_t{config.intermediate_size}, .cols = hidden},
          {.name = name + " down", .rows = hidden, .cols = config.intermediate_size},
          {.name = name + " lm_head", .rows = config.vocab_size, .cols = hidden, .float_output = true}};
}

Status check(const BenchLinearOptions& options) {
  if (options.device != "cuda") {
    return invalid_argument("bench linear: device: expected cuda, found \"", options.device, "\"");
  }
  ONEPASS_ASSIGN_OR_RETURN(const DType dtype, parse_float_dtype(options.dtype));
  if (dtype == DType::kF32) return invalid_argument("bench linear: --dtype: expected float16 or bfloat16");
  if ((options.rows > 0) != (options.cols > 0) || (options.rows > 0 && !options.model_dir.empty())) {
    return invalid_argument("bench linear: expected --rows and --cols, or --model, or none of them");
  }
  if (options.cols % 8 != 0) {
    return invalid_argument("bench linear: --cols: expected a multiple of 8, found ", options.cols);
  }
  return ok_status();
}

}  // namespace

StatusOr<std::vector<LinearLayerShape>> bench_linear_shapes(const BenchLinearOptions& options) {
  if (options.rows > 0) {
    return std::vector<LinearLayerShape>{{.name = "layer", .rows = options.rows, .cols = options.cols}};
  }
  if (!options.model_dir.empty()) {
    ONEPASS_ASSIGN_OR_RETURN(const ModelConfig config, load_model_config(options.model_dir));
    return shapes_of("model", config);
  }
  std::vector<LinearLayerShape> shapes = shapes_of("llama-8b", {.vocab_size = 128256,
                                                                .hidden_size = 4096,
                                                                .intermediate_size = 14336,
                                                                .num_heads = 32,
                                                                .num_kv_heads = 8,
                                                                .head_dim = 128});
  for (LinearLayerShape& shape : shapes_of("qwen3-0.6b", {.vocab_size = 151936,
                                                         .hidden_size = 1024,
                                                         .intermediate_size = 3072,
                                                         .num_heads = 16,
                                                         .num_kv_heads = 8,
                                                         .head_dim = 128})) {
    shapes.push_back(std::move(shape));
  }
  return shapes;
}

void add_bench_linear_command(CLI::App& bench, Action& action) {
  CLI::App* command = bench.add_subcommand("linear", "Dense layers on a GPU, beside its bandwidth");
  auto options = std::make_shared<BenchLinearOptions>();
  command->add_option("--device", options->device, "cuda")->capture_default_str();
  command->add_option("--model", options->model_dir, "a model's shapes (default: Llama-3.1-8B's and Qwen3-0.6B's)");
  command->add_option("--rows", options->rows, "with --cols: one shape")->check(CLI::Range(1, 1 << 24));
  command->add_option("--cols", options->cols)->check(CLI::Range(8, 1 << 20));
  command->add_option("--num-rows", options->num_rows, "of the input, separated by commas")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "of inputs and weights: float16 or bfloat16")->capture_default_str();
  command->add_flag("--all-plans", options->all_plans, "each way to compute it, not only the one that is chosen");
  command->add_flag("--batch-invariant", options->batch_invariant, "the kernel whose rows do not depend on --num-rows");
  command->add_option("--seconds", options->seconds, "time for each measurement")
      ->check(number_range(0.01, 600.0))
      ->capture_default_str();
  command->callback([options, &action] {
    refuse_usage(check(*options));
    action = [options] { return bench_linear_cuda(*options); };
  });
}

}  // namespace onepass
