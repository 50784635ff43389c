// onepass inspect: what a model folder holds and what memory it needs. Reads headers, not weights.
#include <fmt/format.h>
#include <climits>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/svg_plot.h"
#include "kv_cache/kv_pool.h"
#include "models/decoder.h"
#include "models/model_summary.h"

namespace onepass {
namespace {

struct InspectOptions {
  std::string model_dir;
  std::string kv_dtype = "auto";
  int page_size = 64;
  int context_length = 0;
  int num_sequences = 1;
  int chunk_size = 512;
  bool json = false;
};

struct Memory {
  KvPoolConfig kv;
  int context_length = 0;
  int64_t kv_pages = 0;
  int64_t workspace_bytes = 0;

  int64_t kv_bytes() const { return kv_pages * kv.bytes_per_page(); }
};

StatusOr<Memory> memory_of(const ModelSummary& summary, const InspectOptions& options) {
  const ModelConfig& config = summary.config;
  Memory memory;
  memory.context_length = options.context_length > 0 ? options.context_length : config.max_position_embeddings;
  if (memory.context_length > config.max_position_embeddings) {
    return invalid_argument("context length: the model was made for ", config.max_position_embeddings,
                            " tokens, found ", memory.context_length);
  }
  memory.kv = {.num_layers = config.num_layers,
               .page_size = options.page_size,
               .num_kv_heads = config.num_kv_heads,
               .head_dim = config.head_dim,
               .head_dim_v = config.head_dim};
  // Without a wish, K and V are kept in the dtype that most of the weights have.
  const auto most = std::max_element(summary.dtypes.begin(), summary.dtypes.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  ONEPASS_ASSIGN_OR_RETURN(memory.kv.dtype,
                           parse_float_dtype(options.kv_dtype == "auto" ? most->first : options.kv_dtype));
  memory.kv_pages =
      (int64_t{memory.context_length} + options.page_size - 1) / options.page_size * options.num_sequences;
  memory.workspace_bytes =
      DecoderWorkspace::size_bytes(config, {.max_tokens = options.chunk_size, .max_outputs = options.num_sequences},
                                   DType::kF32) +
      int64_t{options.num_sequences} * config.vocab_size * 4;
  return memory;
}

nlohmann::ordered_json to_json(const ModelSummary& summary, const Memory& memory) {
  const ModelConfig& config = summary.config;
  nlohmann::ordered_json files = nlohmann::ordered_json::array(), groups, dtypes;
  for (const auto& file : summary.files) {
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"tensors", file.num_tensors}});
  }
  for (const auto& group : summary.groups) {
    groups[group.name] = {{"parameters", group.parameters}, {"bytes", group.bytes}};
  }
  for (const auto& [dtype, parameters] : summary.dtypes) dtypes[dtype] = parameters;
  return {{"architecture", config.architecture},
          {"parameters", summary.parameters},
          {"parameters_by_group", groups},
          {"parameters_by_dtype", dtypes},
          {"files", files},
          {"tokenizer", summary.has_tokenizer},
          {"chat_template", summary.has_chat_template},
          {"generation_config", summary.has_generation_config},
          {"memory",
           {{"weight_bytes", summary.weight_bytes},
            {"kv_dtype", to_string(memory.kv.dtype)},
            {"page_size", memory.kv.page_size},
            {"kv_bytes_per_token", memory.kv.bytes_per_token()},
            {"kv_bytes_per_page", memory.kv.bytes_per_page()},
            {"context_length", memory.context_length},
            {"kv_pages", memory.kv_pages},
            {"kv_bytes", memory.kv_bytes()},
            {"workspace_bytes", memory.workspace_bytes}}},
          {"config",
           {{"vocab_size", config.vocab_size},
            {"hidden_size", config.hidden_size},
            {"intermediate_size", config.intermediate_size},
            {"num_layers", config.num_layers},
            {"num_heads", config.num_heads},
            {"num_kv_heads", config.num_kv_heads},
            {"head_dim", config.head_dim},
            {"max_position_embeddings", config.max_position_embeddings},
            {"tie_word_embeddings", config.tie_word_embeddings},
            {"sliding_windows", config.sliding_windows},
            {"eos_token_ids", config.eos_token_ids}}}};
}

std::string window_text(const ModelConfig& config) {
  int windowed = 0, window = 0;
  for (const int size : config.sliding_windows) {
    if (size == 0) continue;
    ++windowed;
    window = size;
  }
  if (windowed == 0) return "full attention";
  return fmt::format("a sliding window of {} tokens in {} of {} layers", window, windowed, config.num_layers);
}

// 4192 -> "4,192"
std::string grouped(int64_t number) {
  std::string text = std::to_string(number);
  for (int i = static_cast<int>(text.size()) - 3; i > 0; i -= 3) text.insert(static_cast<size_t>(i), 1, ',');
  return text;
}

std::string to_text(const ModelSummary& summary, const Memory& memory, const InspectOptions& options) {
  const ModelConfig& config = summary.config;
  const auto bytes = [](int64_t count) { return format_bytes(static_cast<double>(count)); };
  std::string text;
  const auto row = [&](std::string_view name, const std::string& value) {
    text += fmt::format("{:<14}{}\n", name, value);
  };
  row("model", options.model_dir);
  row("architecture", config.architecture);
  row("shape", fmt::format("{} layers, hidden {}, MLP {}, vocabulary {}", config.num_layers, config.hidden_size,
                           config.intermediate_size, config.vocab_size));
  row("attention", fmt::format("{} heads over {} of K and V, head dim {}; {}", config.num_heads, config.num_kv_heads,
                               config.head_dim, window_text(config)));
  row("context", fmt::format("{} tokens", config.max_position_embeddings));
  for (const auto& file : summary.files) {
    row("file", fmt::format("{}: {}, {} tensors", file.name, bytes(file.bytes), file.num_tensors));
  }
  row("tokenizer",
      fmt::format("{}; chat template: {}; sampling defaults: {}", summary.has_tokenizer ? "tokenizer.json" : "none",
                  summary.has_chat_template ? "yes" : "none",
                  summary.has_generation_config ? "generation_config.json" : "none"));
  std::string dtypes;
  for (const auto& [dtype, parameters] : summary.dtypes) dtypes += str_cat(dtypes.empty() ? "" : ", ", dtype);
  row("parameters", fmt::format("{} ({})", grouped(summary.parameters), dtypes));
  for (const auto& group : summary.groups) {
    row(str_cat("  ", group.name),
        fmt::format("{:>15}  {}{}", grouped(group.parameters), bytes(group.bytes),
                    group.name == "embedding" && config.tie_word_embeddings ? ", output layer too" : ""));
  }
  row("memory", bytes(summary.weight_bytes + memory.kv_bytes() + memory.workspace_bytes));
  row("  weights", fmt::format("{}, mapped from the files", bytes(summary.weight_bytes)));
  row("  KV cache", fmt::format("{} a token, {} a page of {} tokens ({}); {} for {} sequence{} of {} tokens",
                                bytes(memory.kv.bytes_per_token()), bytes(memory.kv.bytes_per_page()),
                                memory.kv.page_size, to_string(memory.kv.dtype), bytes(memory.kv_bytes()),
                                options.num_sequences, options.num_sequences == 1 ? "" : "s", memory.context_length));
  row("  workspace", fmt::format("{} for steps of {} tokens", bytes(memory.workspace_bytes), options.chunk_size));
  return text;
}

Status run(const InspectOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(const ModelSummary summary, summarize_model(options.model_dir));
  ONEPASS_ASSIGN_OR_RETURN(const Memory memory, memory_of(summary, options));
  const std::string text =
      options.json ? to_json(summary, memory).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
                   : to_text(summary, memory, options);
  std::fputs(text.c_str(), stdout);
  return ok_status();
}

}  // namespace

void add_inspect_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("inspect", "Show what a model folder holds and what memory it needs");
  auto options = std::make_shared<InspectOptions>();
  command->add_option("--model", options->model_dir, "Hugging Face model folder")->required();
  command->add_option("--page-size", options->page_size, "tokens in a page of the KV cache, 1 to 256")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command
      ->add_option("--kv-dtype", options->kv_dtype,
                   "dtype of K and V in the cache: auto (the weights'), float32, float16 or bfloat16")
      ->capture_default_str();
  command->add_option("--context-length", options->context_length, "tokens of one sequence; 0: the model's own")
      ->check(CLI::Range(0, INT_MAX))
      ->capture_default_str();
  command->add_option("--num-sequences", options->num_sequences, "sequences alive at the same time")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--chunk-size", options->chunk_size, "prompt tokens computed in one step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_flag("--json", options->json, "print JSON");
  command->callback([options, &action] {
    if (options->kv_dtype != "auto") refuse_usage(parse_float_dtype(options->kv_dtype).status());
    action = [options] { return run(*options); };
  });
}

}  // namespace onepass
