#include "cli/bench_dataset.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "base/mapped_file.h"

namespace onepass {
namespace {

// Conversations that SGLang's benchmark leaves out, too: too short to say anything, or too long.
constexpr size_t kMinTokens = 2, kMaxPromptTokens = 1024, kMaxTokens = 2048;

std::vector<int32_t> random_tokens(std::mt19937& random, int count, int vocab_size) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab_size));
  return tokens;
}

// Uniform in [ratio * length, length], at least 1.
int random_length(std::mt19937& random, int length, double ratio) {
  const int least = std::max(1, static_cast<int>(ratio * length));
  return least + static_cast<int>(random() % static_cast<uint32_t>(length - least + 1));
}

}  // namespace

void BenchDataset::add_to(CLI::App& app) {
  const char* group = "Dataset";
  app.add_option("--dataset-name", name_, "random, generated-shared-prefix or sharegpt")
      ->check(CLI::IsMember({"random", "generated-shared-prefix", "sharegpt"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--dataset-path", path_, "sharegpt: the JSON file")->group(group);
  app.add_option("--num-prompts", num_prompts_, "random, sharegpt: requests")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str()
      ->group(group);
  app.add_option("--seed", seed_)->capture_default_str()->group(group);
  const auto length = [&](const char* name, int& value, const char* help) {
    app.add_option(name, value, help)->check(CLI::Range(1, 1 << 24))->capture_default_str()->group(group);
  };
  length("--random-input-len", input_len_, "random: tokens of a prompt at most");
  length("--random-output-len", output_len_, "random: tokens of an answer at most");
  app.add_option("--random-range-ratio", range_ratio_, "random: the shortest, as a share of the longest")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str()
      ->group(group);
  length("--gsp-num-groups", num_groups_, "generated-shared-prefix: different system prompts");
  length("--gsp-prompts-per-group", prompts_per_group_, "requests of each");
  length("--gsp-system-prompt-len", system_prompt_len_, "tokens that a group shares");
  length("--gsp-question-len", question_len_, "tokens of a request's own");
  length("--gsp-output-len", shared_output_len_, "tokens of an answer");
}

StatusOr<std::vector<BenchRequest>> BenchDataset::make(int vocab_size, int context_length,
                                                       const Tokenizer* tokenizer) const {
  auto requests = name_ == "random"     ? random_requests(vocab_size)
                  : name_ == "sharegpt" ? sharegpt_requests(tokenizer)
                                        : shared_prefix_requests(vocab_size);
  ONEPASS_RETURN_IF_ERROR(requests.status());
  for (const BenchRequest& request : *requests) {
    const int64_t length = std::ssize(request.prompt) + request.output_len;
    if (length > context_length) {
      return invalid_argument("dataset: a request of ", request.prompt.size(), " + ", request.output_len,
                              " tokens, more than the context of ", context_length);
    }
  }
  return requests;
}

StatusOr<std::vector<BenchRequest>> BenchDataset::random_requests(int vocab_size) const {
  std::mt19937 random(seed_);
  std::vector<BenchRequest> requests(num_prompts_);
  for (BenchRequest& request : requests) {
    request.prompt = random_tokens(random, random_length(random, input_len_, range_ratio_), vocab_size);
    request.output_len = random_length(random, output_len_, range_ratio_);
  }
  return requests;
}

StatusOr<std::vector<BenchRequest>> BenchDataset::shared_prefix_requests(int vocab_size) const {
  std::mt19937 random(seed_);
  std::vector<BenchRequest> requests;
  for (int group = 0; group < num_groups_; ++group) {
    const std::vector<int32_t> system = random_tokens(random, system_prompt_len_, vocab_size);
    for (int i = 0; i < prompts_per_group_; ++i) {
      BenchRequest request{.prompt = system, .output_len = shared_output_len_};
      const std::vector<int32_t> question = random_tokens(random, question_len_, vocab_size);
      request.prompt.insert(request.prompt.end(), question.begin(), question.end());
      requests.push_back(std::move(request));
    }
  }
  std::shuffle(requests.begin(), requests.end(), random);
  return requests;
}

StatusOr<std::vector<BenchRequest>> BenchDataset::sharegpt_requests(const Tokenizer* tokenizer) const {
  if (path_.empty()) return invalid_argument("--dataset-path: sharegpt needs a file");
  if (tokenizer == nullptr) return invalid_argument("sharegpt: needs a model with a tokenizer");
  ONEPASS_ASSIGN_OR_RETURN(const std::string text, read_text_file(path_));
  const nlohmann::json data = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!data.is_array()) return invalid_argument(path_, ": expected a JSON list of conversations");
  std::vector<BenchRequest> requests;
  for (const nlohmann::json& item : data) {
    const auto turns = item.is_object() ? item.find("conversations") : item.end();
    if (!item.is_object() || turns == item.end() || !turns->is_array() || turns->size() < 2) continue;
    const auto value = [&](size_t i) {
      const nlohmann::json& turn = (*turns)[i];
      return turn.is_object() && turn.contains("value") && turn["value"].is_string() ? turn["value"].get<std::string>()
                                                                                     : std::string();
    };
    ONEPASS_ASSIGN_OR_RETURN(std::vector<int32_t> prompt, tokenizer->encode(value(0), {.add_special_tokens = true}));
    ONEPASS_ASSIGN_OR_RETURN(const std::vector<int32_t> answer, tokenizer->encode(value(1), {}));
    if (prompt.size() < kMinTokens || answer.size() < kMinTokens || prompt.size() > kMaxPromptTokens ||
        prompt.size() + answer.size() > kMaxTokens) {
      continue;
    }
    requests.push_back({.prompt = std::move(prompt), .output_len = static_cast<int>(answer.size())});
  }
  if (requests.empty()) return invalid_argument(path_, ": no conversation of a fitting length");
  std::mt19937 random(seed_);
  std::shuffle(requests.begin(), requests.end(), random);
  if (requests.size() > static_cast<size_t>(num_prompts_)) requests.resize(num_prompts_);
  return requests;
}

}  // namespace onepass
