// Options that several subcommands share.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/model_runner.h"
#include "engine/sampling_params.h"
#include "models/generation_config.h"

namespace onepass {

// Ends the parsing of the command line, and the program with status 2, unless `status` is ok. For callbacks of CLI11.
void refuse_usage(const Status& status);

// A number from `least` to `most`; unlike CLI::Range, not NaN.
CLI::Validator number_range(double least, double most);

// An option that takes token ids, separated by commas; an empty one among them is refused.
CLI::Option* add_token_ids(CLI::App& app, const std::string& name, std::vector<int32_t>& ids,
                           const std::string& description);

// --model, --device, --attention, --page-size, ...: what an engine is made with.
class EngineOptions {
 public:
  void add_to(CLI::App& app);
  // Refuses values that cannot be, and options of the other device. For callbacks of CLI11.
  void check() const;
  StatusOr<ModelRunnerOptions> runner_options() const;
  const std::string& model_dir() const { return model_dir_; }

 private:
  const CLI::App* app_ = nullptr;  // what add_to() has added to
  std::string model_dir_;
  std::string device_ = "cpu";
  std::string attention_ = "flash";
  std::string kv_dtype_ = "auto";
  std::string isa_ = "auto";
  bool deterministic_ = false;
  int page_size_ = 64;
  int num_threads_ = 0;
  int context_length_ = 0;
  int chunk_size_ = 0;
  double mem_fraction_ = 0.9;
  bool disable_cuda_graph_ = false;
  bool disable_layer_stack_ = false;
  std::string plan_file_ = "auto";
};

// --temperature, --top-k, ...: what is not given on the command line comes from the model's generation_config.json.
class SamplingOptions {
 public:
  void add_to(CLI::App& app);
  void check() const { refuse_usage(validate(params(GenerationConfig()))); }
  SamplingParams params(const GenerationConfig& defaults) const;

 private:
  std::optional<float> temperature_, top_p_, min_p_, repetition_penalty_;
  std::optional<int> top_k_;
  bool greedy_ = false;
  float presence_penalty_ = 0.0f;
  float frequency_penalty_ = 0.0f;
  std::vector<std::pair<int32_t, float>> logit_bias_;
  std::optional<uint64_t> seed_;
  int max_new_tokens_ = 128;
  int min_new_tokens_ = 0;
  std::vector<int32_t> stop_token_ids_;
  std::vector<std::string> stop_;
  bool include_stop_ = false;
  bool ignore_eos_ = false;
  int logprobs_ = -1;
};

}  // namespace onepass
