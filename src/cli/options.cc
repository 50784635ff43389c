#include "cli/options.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <memory>
#include <random>

#include "cli/load_progress.h"

namespace onepass {

namespace {

// What means nothing on the other device.
constexpr std::pair<const char*, DeviceKind> kOptionsOfOneDevice[] = {
    {"--isa", DeviceKind::kCpu},
    {"--kv-memory-fraction", DeviceKind::kCpu},
    {"--mem-fraction", DeviceKind::kCuda},
    {"--plan-file", DeviceKind::kCuda},
    {"--disable-cuda-graph", DeviceKind::kCuda},
    {"--disable-layer-stack", DeviceKind::kCuda},
};

// Empty where there is no home.
std::string default_plan_file() {
  const char* const cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache == '/') return str_cat(cache, "/onepass/gpu-plans");
  const char* const home = std::getenv("HOME");
  return home != nullptr && *home == '/' ? str_cat(home, "/.cache/onepass/gpu-plans") : "";
}

}  // namespace

CLI::Validator number_range(double least, double most) {
  const std::string name = str_cat("FLOAT in [", least, " - ", most, "]");
  return CLI::Validator(
      [least, most](const std::string& text) -> std::string {
        double value = 0.0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool is_number = error == std::errc() && end == text.data() + text.size();
        if (is_number && value >= least && value <= most) return "";
        return str_cat("Value ", text, " not in range [", least, " - ", most, "]");
      },
      name);
}

void refuse_usage(const Status& status) {
  if (!status.ok()) throw CLI::ValidationError(std::string(status.message()));
}

CLI::Option* add_token_ids(CLI::App& app, const std::string& name, std::vector<int32_t>& ids,
                           const std::string& description) {
  const auto parse = [&ids, name](const std::vector<std::string>& lists) {
    for (const std::string& list : lists) {
      for (size_t begin = 0; begin <= list.size();) {
        const size_t end = std::min(list.find(',', begin), list.size());
        int32_t id = -1;
        const auto [stop, error] = std::from_chars(list.data() + begin, list.data() + end, id);
        if (error != std::errc() || stop != list.data() + end || id < 0) {
          refuse_usage(invalid_argument(name, ": expected token ids separated by commas, found \"",
                                        printable(std::string_view(list).substr(begin, end - begin), 40), "\" in \"",
                                        printable(list, 80), "\""));
        }
        ids.push_back(id);
        begin = end + 1;
      }
    }
  };
  return app.add_option_function<std::vector<std::string>>(name, parse, description)->type_name("ID,ID,...");
}

void EngineOptions::add_to(CLI::App& app) {
  app_ = &app;
  app.add_option("--model", model_dir_, "Hugging Face model folder")->required();
  app.add_option("--device", device_, "where to run: cpu, cuda, or cuda:N for the N-th GPU")->capture_default_str();
  app.add_option("--attention", attention_, "attention backend: flash, or reference (slow, float64)")
      ->capture_default_str();
  app.add_flag("--deterministic", deterministic_,
               "the same bits whatever the chunks, page size and number of threads; slower prefill");
  app.add_option("--page-size", page_size_, "tokens in a page of the KV cache, 1 to 256")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--kv-dtype", kv_dtype_,
                 "dtype of K and V in the cache: auto (the weights'), float32, float16 or bfloat16")
      ->capture_default_str();
  app.add_option("--threads", num_threads_, "CPU threads; 0: one for each processor")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--isa", isa_, "CPU instruction set: auto, portable, avx2, avx512 or avx512bf16")
      ->capture_default_str();
  app.add_option("--context-length", context_length_, "tokens of one sequence at most; 0: the model's own")
      ->check(CLI::Range(0, INT_MAX))
      ->capture_default_str();
  app.add_option("--chunk-size", chunk_size_, "prompt tokens computed in one step; 0: 512 on the CPU, 8192 on a GPU")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--mem-fraction", mem_fraction_,
                 "of a GPU's memory, for weights, KV cache and workspace together; the KV cache takes what is left")
      ->check(number_range(0.01, 1.0))
      ->capture_default_str();
  app.add_option(
         "--plan-file", plan_file_,
         "where a GPU's fastest way to compute each layer is kept from one start to the next; none: nowhere; auto: "
         "onepass/gpu-plans in $XDG_CACHE_HOME or ~/.cache")
      ->capture_default_str();
  app.add_flag("--disable-cuda-graph", disable_cuda_graph_,
               "launch a GPU's kernels one by one; the tokens are the same, decoding and short prompts are slower");
  app.add_flag("--disable-layer-stack", disable_layer_stack_,
               "decode few sequences layer by layer too, not by a GPU's one kernel for all layers");
}

void EngineOptions::check() const {
  const StatusOr<ModelRunnerOptions> options = runner_options();
  refuse_usage(options.status());
  for (const auto& [name, device] : kOptionsOfOneDevice) {
    const CLI::Option* const option = app_->get_option_no_throw(name);
    if (option != nullptr && option->count() > 0 && device != options->device.kind) {
      refuse_usage(
          invalid_argument(name, ": expected --device ", to_string(device), ", found ", to_string(options->device)));
    }
  }
}

StatusOr<ModelRunnerOptions> EngineOptions::runner_options() const {
  ModelRunnerOptions options;
  ONEPASS_ASSIGN_OR_RETURN(options.device, parse_device(device_));
  options.model_dir = model_dir_;
  ONEPASS_ASSIGN_OR_RETURN(options.attention, parse_attention_kind(attention_));
  ONEPASS_ASSIGN_OR_RETURN(options.isa, parse_cpu_isa(isa_));
  if (kv_dtype_ != "auto") {
    ONEPASS_ASSIGN_OR_RETURN(options.kv_dtype, parse_float_dtype(kv_dtype_));
  }
  // Progress is for people who wait.
  const CLI::Option* const quiet = app_ == nullptr ? nullptr : app_->get_option_no_throw("--quiet");
  if (::isatty(STDERR_FILENO) == 1 && (quiet == nullptr || quiet->count() == 0)) {
    options.on_load_progress = [progress = std::make_shared<LoadProgress>(stderr)](int done, int total) {
      progress->show(done, total);
    };
  }
  options.deterministic = deterministic_;
  options.page_size = page_size_;
  options.num_threads = num_threads_;
  options.context_length = context_length_;
  // A GPU needs thousands of rows to compute at its rate; a CPU has it with a few hundred.
  const int default_chunk = options.device.kind == DeviceKind::kCuda ? 8192 : 512;
  options.max_tokens_per_step = chunk_size_ > 0 ? chunk_size_ : default_chunk;
  options.gpu_memory_fraction = mem_fraction_;
  options.cuda_graphs = !disable_cuda_graph_;
  options.layer_stack = !disable_layer_stack_;
  options.plan_file = plan_file_ == "auto" ? default_plan_file() : plan_file_ == "none" ? "" : plan_file_;
  return options;
}

void SamplingOptions::add_to(CLI::App& app) {
  const char* group = "Sampling (defaults: the model's generation_config.json)";
  auto* temperature = app.add_option("--temperature", temperature_, "0: greedy")->group(group);
  app.add_flag("--greedy", greedy_, "the same as --temperature 0")->group(group)->excludes(temperature);
  app.add_option("--top-k", top_k_, "keep the k likeliest tokens; 0: all")->group(group);
  app.add_option("--top-p", top_p_, "keep the likeliest tokens that make up this probability")->group(group);
  app.add_option("--min-p", min_p_, "drop tokens less likely than this times the likeliest")->group(group);
  app.add_option("--repetition-penalty", repetition_penalty_, "divides the logits of tokens seen, prompt included")
      ->group(group);
  app.add_option("--presence-penalty", presence_penalty_, "subtracted from the logits of tokens generated")
      ->group(group);
  app.add_option("--frequency-penalty", frequency_penalty_, "the same, times how often")->group(group);
  app.add_option("--logit-bias", logit_bias_, "TOKEN_ID BIAS, added to its logit, -100 to 100; may be given again")
      ->group(group);
  app.add_option("--seed", seed_, "the same seed gives the same text; unset: a random one, printed")
      ->check(
          [](const std::string& text) -> std::string {
            uint64_t seed = 0;
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
            return error == std::errc() && end == text.data() + text.size() ? ""
                                                                            : "expected 0 to 2^64 - 1, found " + text;
          },
          "")
      ->group(group);
  app.add_option("--max-tokens,--max-new-tokens", max_new_tokens_, "new tokens at most")
      ->check(CLI::Range(1, INT_MAX))
      ->capture_default_str()
      ->group(group);
  app.add_option("--min-tokens,--min-new-tokens", min_new_tokens_,
                 "no end token and no stop string ends the answer before so many new tokens")
      ->check(CLI::Range(0, INT_MAX))
      ->capture_default_str()
      ->group(group);
  app.add_option("--stop", stop_, "text that ends the answer; may be given again")
      ->group(group)
      ->allow_extra_args(false);
  app.add_flag("--include-stop-str", include_stop_, "leave the stop string in the text")->group(group);
  app.add_option("--stop-token-id", stop_token_ids_, "token that ends the answer; may be given again")
      ->check(CLI::Range(0, INT_MAX))
      ->group(group)
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", ignore_eos_, "go on past the model's end tokens")->group(group);
  app.add_option("--logprobs", logprobs_,
                 "log-probabilities of the chosen token and of the N likeliest (shown with --json)")
      ->check(CLI::Range(0, kMaxTopLogprobs))
      ->group(group);
}

SamplingParams SamplingOptions::params(const GenerationConfig& defaults) const {
  SamplingParams params;
  // do_sample false in generation_config.json means greedy, unless the command line asks for sampling.
  const bool asks_for_sampling = temperature_ || top_k_ || top_p_ || min_p_;
  params.temperature = temperature_.value_or(
      defaults.do_sample == false && !asks_for_sampling ? 0.0f : defaults.temperature.value_or(1.0f));
  if (greedy_) params.temperature = 0.0f;
  params.top_k = top_k_.value_or(defaults.top_k.value_or(0));
  params.top_p = top_p_.value_or(defaults.top_p.value_or(1.0f));
  params.min_p = min_p_.value_or(defaults.min_p.value_or(0.0f));
  params.repetition_penalty = repetition_penalty_.value_or(defaults.repetition_penalty.value_or(1.0f));
  params.presence_penalty = presence_penalty_;
  params.frequency_penalty = frequency_penalty_;
  params.logit_bias = logit_bias_;
  params.seed = seed_ ? *seed_ : std::random_device()();
  params.max_new_tokens = max_new_tokens_;
  params.min_new_tokens = min_new_tokens_;
  params.stop_token_ids = stop_token_ids_;
  params.stop = stop_;
  params.include_stop_str_in_output = include_stop_;
  params.ignore_eos = ignore_eos_;
  params.logprobs = logprobs_;
  return params;
}

}  // namespace onepass
