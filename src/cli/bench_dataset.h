// What the serving benchmarks ask for: the dataset kinds of SGLang's and vLLM's benchmarks.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "tokenizer/tokenizer.h"

namespace onepass {

struct BenchRequest {
  std::vector<int32_t> prompt;
  int output_len = 0;
};

// --dataset-name random | generated-shared-prefix | sharegpt, and what each of them takes.
class BenchDataset {
 public:
  void add_to(CLI::App& app);

  // The same options give the same requests. `tokenizer` may be null unless the dataset holds text. Prompts and answers
  // are cut to `context_length`.
  StatusOr<std::vector<BenchRequest>> make(int vocab_size, int context_length, const Tokenizer* tokenizer) const;

 private:
  StatusOr<std::vector<BenchRequest>> random_requests(int vocab_size) const;
  StatusOr<std::vector<BenchRequest>> shared_prefix_requests(int vocab_size) const;
  StatusOr<std::vector<BenchRequest>> sharegpt_requests(const Tokenizer* tokenizer) const;

  std::string name_ = "random";
  std::string path_;
  int num_prompts_ = 100;
  uint32_t seed_ = 1;
  int input_len_ = 512;
  int output_len_ = 128;
  double range_ratio_ = 1.0;
  int num_groups_ = 8;
  int prompts_per_group_ = 8;
  int system_prompt_len_ = 1024;
  int question_len_ = 64;
  int shared_output_len_ = 64;
};

}  // namespace onepass
