// What the serving benchmarks ask for: the dataset kinds of SGLang's and vLLM's benchmarks.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "tokenizer/tokenizer.h"

namespace onepass {

struct BenchRequest {
  std::vector<int32_t> prompt;
  int output_len = 0;
};

// What bounds the requests. Prompt and answer together fit both the context and the KV cache.
struct BenchLimits {
  int vocab_size = 0;
  int context_length = 0;
  int64_t cache_tokens = 0;
};

// --dataset-name random | generated-shared-prefix | sharegpt, and what each of them takes.
class BenchDataset {
 public:
  void add_to(CLI::App& app);

  // Refuses options of another dataset than the chosen one.
  void check() const;

  // The same options give the same requests, each within `limits`: defaults are cut to fit them, lengths asked for
  // that do not are an error, and conversations that do not are left out; stderr says so. `tokenizer` may be null
  // unless the dataset holds text.
  StatusOr<std::vector<BenchRequest>> make(const BenchLimits& limits, const Tokenizer* tokenizer) const;

 private:
  // A length of prompt or answer, with its option on the command line.
  struct Length {
    const CLI::Option* option = nullptr;
    int tokens = 0;
  };
  // Cuts what was not given, the first ones first.
  static Status fit(std::span<Length* const> lengths, int64_t num_requests, const BenchLimits& limits);

  StatusOr<std::vector<BenchRequest>> random_requests(const BenchLimits& limits) const;
  StatusOr<std::vector<BenchRequest>> shared_prefix_requests(const BenchLimits& limits) const;
  StatusOr<std::vector<BenchRequest>> sharegpt_requests(const BenchLimits& limits, const Tokenizer* tokenizer) const;

  std::string name_ = "random";
  std::string path_;
  int num_prompts_ = 100;
  uint32_t seed_ = 1;
  Length input_{.tokens = 512};
  Length output_{.tokens = 128};
  double range_ratio_ = 1.0;
  int num_groups_ = 8;
  int prompts_per_group_ = 8;
  Length system_prompt_{.tokens = 1024};
  Length question_{.tokens = 64};
  Length shared_output_{.tokens = 64};
  // Options that some datasets alone take, and which.
  std::vector<std::pair<const CLI::Option*, std::vector<std::string>>> owners_;
};

}  // namespace onepass
