#include "cli/bench_dataset.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>
#include <string_view>

#include "base/json.h"
#include "base/mapped_file.h"
#include "cli/options.h"

namespace onepass {
namespace {

constexpr const char* kRandom = "random";
constexpr const char* kSharedPrefix = "generated-shared-prefix";
constexpr const char* kShareGpt = "sharegpt";

// Conversations that SGLang's benchmark leaves out, too: too short to say anything, or too long.
constexpr size_t kMinTokens = 2, kMaxPromptTokens = 1024, kMaxTokens = 2048;

// Every request waits in memory from the start on, with its prompt and the times of its tokens: some GiB at most.
constexpr int64_t kMaxRequests = 1'000'000, kMaxTotalTokens = int64_t{1} << 28;

// Tokens of one request at most, and what holds no more.
struct Room {
  int64_t tokens;
  const char* holder;
};

Room room(const BenchLimits& limits) {
  if (limits.cache_tokens < limits.context_length) return {limits.cache_tokens, "KV cache"};
  return {limits.context_length, "context"};
}

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

// The first two turns.
struct Conversation {
  std::string prompt;
  std::string answer;
};

// The conversations of two turns or more. Each leaves the parser as soon as it is read: whole, a file of this kind
// would take several times its size.
StatusOr<std::vector<Conversation>> read_conversations(const std::string& path) {
  ONEPASS_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(path));
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  std::vector<Conversation> conversations;
  const auto value = [](nlohmann::json& turn) {
    const auto found = turn.is_object() ? turn.find("value") : turn.end();
    return turn.is_object() && found != turn.end() && found->is_string() ? std::move(found->get_ref<std::string&>())
                                                                         : std::string();
  };
  const auto take = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& item) {
    if (event != nlohmann::json::parse_event_t::object_end || depth != 1) return true;
    const auto turns = item.find("conversations");
    if (turns != item.end() && turns->is_array() && turns->size() >= 2) {
      conversations.push_back({.prompt = value((*turns)[0]), .answer = value((*turns)[1])});
    }
    return false;
  };
  ONEPASS_ASSIGN_OR_RETURN(const nlohmann::json list, parse_json(path, text, take));
  if (!list.is_array()) return invalid_argument(path, ": expected a JSON list of conversations");
  return conversations;
}

}  // namespace

void BenchDataset::add_to(CLI::App& app) {
  const char* group = "Dataset";
  app.add_option("--dataset-name", name_, "random, generated-shared-prefix or sharegpt")
      ->check(CLI::IsMember({kRandom, kSharedPrefix, kShareGpt}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--seed", seed_)->capture_default_str()->group(group);
  const auto own = [&](CLI::Option* option, std::vector<std::string> datasets) {
    option->capture_default_str()->group(group);
    owners_.emplace_back(option, std::move(datasets));
    return option;
  };
  own(app.add_option("--dataset-path", path_, "sharegpt: the JSON file"), {kShareGpt});
  own(app.add_option("--num-prompts", num_prompts_, "random, sharegpt: requests"), {kRandom, kShareGpt})
      ->check(CLI::Range(int64_t{1}, kMaxRequests));
  const auto number = [&](const char* dataset, const char* name, int& value, const char* help) {
    return own(app.add_option(name, value, help), {dataset})->check(CLI::Range(1, 1 << 24));
  };
  const auto length = [&](const char* dataset, const char* name, Length& value, const char* help) {
    value.option = number(dataset, name, value.tokens, help);
  };
  length(kRandom, "--random-input-len", input_, "random: tokens of a prompt at most");
  length(kRandom, "--random-output-len", output_, "random: tokens of an answer at most");
  own(app.add_option("--random-range-ratio", range_ratio_, "random: the shortest, as a share of the longest"),
      {kRandom})
      ->check(number_range(0.0, 1.0));
  number(kSharedPrefix, "--gsp-num-groups", num_groups_, "generated-shared-prefix: different system prompts");
  number(kSharedPrefix, "--gsp-prompts-per-group", prompts_per_group_, "requests of each");
  length(kSharedPrefix, "--gsp-system-prompt-len", system_prompt_, "tokens that a group shares");
  length(kSharedPrefix, "--gsp-question-len", question_, "tokens of a request's own");
  length(kSharedPrefix, "--gsp-output-len", shared_output_, "tokens of an answer");
}

void BenchDataset::check() const {
  if (name_ == kShareGpt && path_.empty()) {
    refuse_usage(invalid_argument("--dataset-path: --dataset-name sharegpt needs a file"));
  }
  for (const auto& [option, datasets] : owners_) {
    if (option->count() == 0 || std::find(datasets.begin(), datasets.end(), name_) != datasets.end()) continue;
    std::string expected = datasets.front();
    for (size_t i = 1; i < datasets.size(); ++i) expected += " or " + datasets[i];
    refuse_usage(invalid_argument(option->get_name(), ": expected --dataset-name ", expected, ", found ", name_));
  }
}

StatusOr<std::vector<BenchRequest>> BenchDataset::make(const BenchLimits& limits, const Tokenizer* tokenizer) const {
  if (name_ == kRandom) return random_requests(limits);
  return name_ == kShareGpt ? sharegpt_requests(limits, tokenizer) : shared_prefix_requests(limits);
}

Status BenchDataset::fit(std::span<Length* const> lengths, int64_t num_requests, const BenchLimits& limits) {
  const auto [most, holder] = room(limits);
  int64_t total = 0;
  std::string given;
  for (const Length* length : lengths) {
    given += str_cat(given.empty() ? "" : " + ", length->tokens);
    total += length->tokens;
  }
  std::string cuts;
  for (Length* length : lengths) {
    const int cut = static_cast<int>(std::clamp<int64_t>(total - most, 0, length->tokens - 1));
    if (length->option->count() > 0 || cut == 0) continue;
    length->tokens -= cut;
    total -= cut;
    cuts += str_cat(cuts.empty() ? "" : ", ", length->option->get_name(), " cut to ", length->tokens);
  }
  if (total > most) {
    return invalid_argument("dataset: a request of ", given, " tokens, more than the ", holder, " of ", most);
  }
  if (num_requests > kMaxRequests || num_requests > kMaxTotalTokens / total) {
    return invalid_argument("dataset: ", num_requests, " requests of ", total, " tokens each, expected at most ",
                            kMaxRequests, " requests and ", kMaxTotalTokens, " tokens in all");
  }
  if (!cuts.empty()) {
    std::fprintf(stderr, "dataset: %s tokens by default, but the %s holds %lld: %s\n", given.c_str(), holder,
                 static_cast<long long>(most), cuts.c_str());
  }
  return ok_status();
}

StatusOr<std::vector<BenchRequest>> BenchDataset::random_requests(const BenchLimits& limits) const {
  Length input = input_, output = output_;
  ONEPASS_RETURN_IF_ERROR(fit(std::array{&input, &output}, num_prompts_, limits));
  std::mt19937 random(seed_);
  std::vector<BenchRequest> requests(num_prompts_);
  for (BenchRequest& request : requests) {
    request.prompt = random_tokens(random, random_length(random, input.tokens, range_ratio_), limits.vocab_size);
    request.output_len = random_length(random, output.tokens, range_ratio_);
  }
  return requests;
}

StatusOr<std::vector<BenchRequest>> BenchDataset::shared_prefix_requests(const BenchLimits& limits) const {
  Length prefix = system_prompt_, question = question_, output = shared_output_;
  ONEPASS_RETURN_IF_ERROR(
      fit(std::array{&prefix, &question, &output}, int64_t{num_groups_} * prompts_per_group_, limits));
  std::mt19937 random(seed_);
  std::vector<BenchRequest> requests;
  for (int group = 0; group < num_groups_; ++group) {
    const std::vector<int32_t> shared = random_tokens(random, prefix.tokens, limits.vocab_size);
    for (int i = 0; i < prompts_per_group_; ++i) {
      BenchRequest request{.prompt = shared, .output_len = output.tokens};
      const std::vector<int32_t> own = random_tokens(random, question.tokens, limits.vocab_size);
      request.prompt.insert(request.prompt.end(), own.begin(), own.end());
      requests.push_back(std::move(request));
    }
  }
  std::shuffle(requests.begin(), requests.end(), random);
  return requests;
}

StatusOr<std::vector<BenchRequest>> BenchDataset::sharegpt_requests(const BenchLimits& limits,
                                                                    const Tokenizer* tokenizer) const {
  if (tokenizer == nullptr) return invalid_argument("sharegpt: needs a model with a tokenizer");
  ONEPASS_ASSIGN_OR_RETURN(std::vector<Conversation> conversations, read_conversations(path_));
  // Before they are tokenized: of a large file few are.
  std::mt19937 random(seed_);
  std::shuffle(conversations.begin(), conversations.end(), random);
  const size_t most = std::min(kMaxTokens, static_cast<size_t>(room(limits).tokens));
  std::vector<BenchRequest> requests;
  size_t num_too_long = 0, num_total = 0;
  for (const Conversation& conversation : conversations) {
    if (requests.size() == static_cast<size_t>(num_prompts_)) break;
    ONEPASS_ASSIGN_OR_RETURN(std::vector<int32_t> prompt,
                             tokenizer->encode(conversation.prompt, {.add_special_tokens = true}));
    ONEPASS_ASSIGN_OR_RETURN(const std::vector<int32_t> answer, tokenizer->encode(conversation.answer, {}));
    if (prompt.size() < kMinTokens || answer.size() < kMinTokens) continue;
    if (prompt.size() > kMaxPromptTokens || prompt.size() + answer.size() > most) {
      ++num_too_long;
      continue;
    }
    num_total += prompt.size() + answer.size();
    if (num_total > static_cast<size_t>(kMaxTotalTokens)) {
      return invalid_argument("--num-prompts: ", num_prompts_, " conversations, expected at most ", kMaxTotalTokens,
                              " tokens in all, found more after ", requests.size());
    }
    requests.push_back({.prompt = std::move(prompt), .output_len = static_cast<int>(answer.size())});
  }
  if (num_too_long > 0) {
    const std::string in_prompt = str_cat("more than ", kMaxPromptTokens, " tokens in the prompt or ");
    std::fprintf(stderr, "%s: conversations left out: %zu of %smore than %zu tokens\n", path_.c_str(), num_too_long,
                 most > kMaxPromptTokens ? in_prompt.c_str() : "", most);
  }
  if (requests.empty()) return invalid_argument(path_, ": no conversation of a fitting length");
  return requests;
}

}  // namespace onepass
