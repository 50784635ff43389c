#include "scheduler/step_planner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>

#include "base/strings.h"

namespace onepass {
namespace {

struct Config {
  int page_size = 4;
  int num_pages = 33;
  int max_running = 4;
  int budget = 16;
  SchedulePolicy policy = SchedulePolicy::kFcfs;
  bool prefix_caching = true;
  int steps_in_flight = 1;
};

uint64_t mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9E3779B97F4A7C15u + (hash << 6) + (hash >> 2);
  return hash * 0xBF58476D1CE4E5B9u;
}

// A device whose K and V of a token is a hash of all that the token may depend on, and whose next token is another: it
// sees at once when a request reads a page that holds anything but its own text.
class FakeDevice {
 public:
  explicit FakeDevice(const Config& config)
      : config_(config),
        table_(config.max_running, config.num_pages),
        cache_(table_, config.num_pages, config.page_size, config.prefix_caching),
        planner_(
            {.max_tokens_per_step = config.budget, .max_running_requests = config.max_running, .policy = config.policy},
            cache_),
        content_(static_cast<size_t>(config.num_pages) * config.page_size, 0) {
    planner_.set_listener([&](PlanEvent event, Request&) { retractions += event == PlanEvent::kRetracted; });
  }

  int64_t capacity() const { return int64_t{cache_.capacity()} * config_.page_size; }
  KvCacheManager& cache() { return cache_; }
  StepPlanner& planner() { return planner_; }
  const std::vector<std::string>& wrong() const { return wrong_; }
  int num_unfinished() const { return num_unfinished_; }

  Request* arrive(std::vector<int32_t> prompt, int max_new, const std::string& salt = {}, int priority = 0,
                  const Request* fork_of = nullptr) {
    auto request = std::make_unique<Request>();
    request->id = requests_.size();
    request->num_prompt_tokens = static_cast<int>(prompt.size());
    request->max_tokens = static_cast<int>(std::min<int64_t>(request->num_prompt_tokens + max_new, capacity()));
    request->tokens = std::move(prompt);
    request->salt = salt;
    request->priority = priority;
    request->fork_of = fork_of;
    planner_.add(request.get());
    ++num_unfinished_;
    requests_.push_back(std::move(request));
    return requests_.back().get();
  }

  // Plans a step and runs it; false when there was none.
  bool launch() {
    const StepPlan plan = planner_.plan();
    if (plan.empty()) return false;
    expect(plan.num_tokens() <= config_.budget, "a step over its budget");
    expect(static_cast<int>(planner_.running().size()) <= config_.max_running, "too many requests run");
    std::map<const Request*, int> seen;
    std::set<int64_t> written;
    for (const StepPlan::Item& item : plan.items) {
      expect(++seen[item.request] == 1, "a request twice in a step");
      expect(item.num_tokens >= 1, "an empty item");
      tokens_computed += item.num_tokens;
      const std::vector<uint64_t> hashes = prefix_hashes(*item.request);
      for (int i = 0; i < item.num_tokens; ++i) {
        const int position = item.first_position + i;
        const int64_t at = table_.token_slot(item.slot, position, config_.page_size);
        expect(written.insert(at).second, "two requests write the same place");
        content_[at] = hashes[position];
      }
    }
    Results results;
    for (const StepPlan::Item& item : plan.items) {
      const std::vector<uint64_t> hashes = prefix_hashes(*item.request);
      for (int position = 0; position < item.first_position + item.num_tokens; ++position) {
        const int64_t at = table_.token_slot(item.slot, position, config_.page_size);
        expect(content_[at] == hashes[position],
               str_cat("request ", item.request->id, " reads another text at ", position).c_str());
      }
      if (!item.is_known) {
        expect(item.num_tokens == 1 && last_tokens_[item.slot] == true_token(*item.request, item.first_position),
               "a request goes on from another's token");
      }
    }
    for (const StepPlan::Item& item : plan.items) {
      if (!item.samples) continue;
      last_tokens_[item.slot] = true_token(*item.request, item.first_position + item.num_tokens);
      results.push_back(item.request);
    }
    for (const StepPlan::Fork& fork : plan.forks) {
      expect(plan.items[fork.item].request == fork.request->fork_of, "a fork of another request");
      last_tokens_[fork.slot] = true_token(*fork.request, fork.request->num_prompt_tokens);
      results.push_back(fork.request);
    }
    for (const PageCopy& copy : plan.copies) {
      for (int i = 0; i < copy.num_tokens; ++i) {
        content_[int64_t{copy.to} * config_.page_size + i] = content_[int64_t{copy.from} * config_.page_size + i];
      }
    }
    in_flight_.push_back(std::move(results));
    ++steps;
    return true;
  }

  // The oldest step's tokens arrive; requests that have all of theirs finish.
  bool collect() {
    if (in_flight_.empty()) return false;
    for (Request* request : in_flight_.front()) {
      const int32_t token = true_token(*request, request->num_known());
      const bool is_finished = request->state == Request::State::kFinished;
      planner_.on_token(request, token);
      if (!is_finished && request->num_known() >= request->max_tokens) finish(request);
    }
    in_flight_.pop_front();
    return true;
  }

  void finish(Request* request) {
    planner_.finish(request);
    --num_unfinished_;
  }

  void step() {
    while (static_cast<int>(in_flight_.size()) < config_.steps_in_flight && launch()) {
    }
    collect();
    check();
  }

  void run_to_end() {
    for (int i = 0; num_unfinished_ > 0 && wrong_.empty(); ++i) {
      if (i > 100'000) return expect(false, "no end in sight");
      step();
    }
    while (collect()) {
    }
    check();
    expect(planner_.idle(), "the planner is not idle at the end");
    cache_.clear_prefix_cache();
    expect(cache_.num_free() == cache_.capacity(), "pages are leaked");
    expect(table_.num_used() == 0, "slots are leaked");
  }

  Request* pick(uint32_t random) {
    std::vector<Request*> alive;
    for (const auto& request : requests_) {
      if (request->state != Request::State::kFinished) alive.push_back(request.get());
    }
    return alive.empty() ? nullptr : alive[random % alive.size()];
  }

  void check() {
    for (const std::string& line : cache_.check()) wrong_.push_back(line);
    for (const std::string& line : planner_.check()) wrong_.push_back(line);
  }

  int64_t tokens_computed = 0;
  int steps = 0, retractions = 0;

 private:
  using Results = std::vector<Request*>;

  void expect(bool ok, const char* what) {
    if (!ok) wrong_.emplace_back(what);
  }

  // What request `r` has at `position`: its prompt, then what the device makes of it.
  int32_t true_token(const Request& r, int position) {
    std::vector<int32_t>& truth = truths_[r.id];
    if (truth.empty()) truth.assign(r.tokens.begin(), r.tokens.begin() + r.num_prompt_tokens);
    while (static_cast<int>(truth.size()) <= position) {
      uint64_t hash = r.fork_of != nullptr ? r.id : 0;
      for (int32_t token : truth) hash = mix(hash, static_cast<uint64_t>(token));
      truth.push_back(static_cast<int32_t>(hash % 5));
    }
    return truth[position];
  }

  std::vector<uint64_t> prefix_hashes(const Request& r) {
    std::vector<uint64_t> hashes;
    uint64_t hash = std::hash<std::string>()(r.salt) + 1;
    for (int position = 0; position < r.num_computed; ++position) {
      const int32_t token = true_token(r, position);
      if (position < r.num_known()) expect(r.tokens[position] == token, "a request's tokens have changed");
      hash = mix(hash, static_cast<uint64_t>(token));
      hashes.push_back(hash);
    }
    return hashes;
  }

  const Config config_;
  RequestTable table_;
  KvCacheManager cache_;
  StepPlanner planner_;
  std::vector<uint64_t> content_;
  std::vector<std::unique_ptr<Request>> requests_;
  std::map<uint64_t, std::vector<int32_t>> truths_;
  std::deque<Results> in_flight_;
  std::map<int, int32_t> last_tokens_;  // by slot: what has been sampled there last
  std::vector<std::string> wrong_;
  int num_unfinished_ = 0;
};

std::vector<int32_t> range(int begin, int end) {
  std::vector<int32_t> tokens;
  for (int i = begin; i < end; ++i) tokens.push_back(i);
  return tokens;
}

TEST(StepPlannerTest, LongPromptsLeaveRoomForDecoding) {
  FakeDevice device({.page_size = 4, .num_pages = 200, .max_running = 3, .budget = 16});
  Request* const first = device.arrive(range(0, 3), 100);
  device.step();
  Request* const longer = device.arrive(range(100, 400), 4);
  int steps = 0;
  while (longer->num_generated() == 0) {
    const int before = first->num_generated();
    device.step();
    EXPECT_EQ(first->num_generated(), before + 1) << "a chunk stalls the other's decoding";
    ++steps;
  }
  EXPECT_EQ(steps, 25);  // 300 tokens, 12 a step: 15 beside the decode, cut to whole pages
  device.run_to_end();
  EXPECT_EQ(device.wrong(), std::vector<std::string>());
}

TEST(StepPlannerTest, ComputesASharedPrefixOnce) {
  for (const int budget : {24, 64, 2000}) {
    FakeDevice device({.page_size = 8, .num_pages = 400, .max_running = 16, .budget = budget});
    for (int i = 0; i < 16; ++i) {
      std::vector<int32_t> prompt = range(0, 128);
      for (int j = 0; j < 8; ++j) prompt.push_back(1000 + i * 8 + j);
      device.arrive(prompt, 1);
    }
    device.run_to_end();
    EXPECT_EQ(device.wrong(), std::vector<std::string>());
    EXPECT_EQ(device.tokens_computed, 128 + 16 * 8) << "budget " << budget;
  }
}

TEST(StepPlannerTest, ForksShareThePromptAndCopyItsLastPage) {
  FakeDevice device({.page_size = 8, .num_pages = 20, .max_running = 4, .budget = 64});
  Request* const leader = device.arrive(range(0, 20), 6);
  for (int i = 0; i < 3; ++i) device.arrive(range(0, 20), 6, "", 0, leader);
  device.step();
  EXPECT_EQ(device.planner().running().size(), 4u);
  EXPECT_EQ(device.tokens_computed, 20);
  // Two whole pages together, the third each for itself.
  EXPECT_EQ(device.cache().capacity() - device.cache().num_free(), 2 + 4);
  device.run_to_end();
  EXPECT_EQ(device.wrong(), std::vector<std::string>());
  EXPECT_EQ(device.tokens_computed, 20 + 4 * 5);
}

TEST(StepPlannerTest, TheOldestGoesOnWhenPagesRunOut) {
  FakeDevice device({.page_size = 1, .num_pages = 25, .max_running = 4, .budget = 16});
  Request* const first = device.arrive(range(0, 5), 19);
  for (int i = 1; i < 4; ++i) device.arrive(range(100 * i, 100 * i + 4), 19);
  while (first->state != Request::State::kFinished) device.step();
  EXPECT_EQ(first->num_retractions, 0);
  EXPECT_GT(device.retractions, 0);
  device.run_to_end();
  EXPECT_EQ(device.wrong(), std::vector<std::string>());
}

TEST(StepPlannerTest, HigherPriorityAndLongerPrefixGoFirst) {
  FakeDevice device({.page_size = 2, .num_pages = 100, .max_running = 1, .budget = 16, .policy = SchedulePolicy::kLpm});
  device.arrive(range(0, 8), 1);
  device.run_to_end();  // clears the cache
  Request* const warm = device.arrive(range(0, 8), 3);
  while (warm->state != Request::State::kFinished) device.step();
  Request* const plain = device.arrive(range(50, 60), 1);
  std::vector<int32_t> longer = range(0, 8);
  longer.push_back(77);
  Request* const cached = device.arrive(longer, 1);
  Request* const urgent = device.arrive(range(70, 75), 1, "", /*priority=*/1);
  std::vector<const Request*> order;
  while (order.size() < 3) {
    device.step();
    for (const Request* request : {plain, cached, urgent}) {
      if (request->state == Request::State::kFinished &&
          std::find(order.begin(), order.end(), request) == order.end()) {
        order.push_back(request);
      }
    }
  }
  EXPECT_EQ(order, (std::vector<const Request*>{urgent, cached, plain}));
  EXPECT_EQ(cached->cached_tokens, 8);
  EXPECT_EQ(plain->cached_tokens, 0);
}

// Random operations as data, so that a failure can be shrunk.
struct Operation {
  enum Kind : uint8_t { kArrive, kStep, kLaunch, kCollect, kCancel, kClear } kind;
  uint32_t a, b, c, d;
};

std::string to_string(const Operation& operation) {
  constexpr const char* kNames[] = {"arrive", "step", "launch", "collect", "cancel", "clear"};
  return str_cat(kNames[operation.kind], "(", operation.a, ",", operation.b, ",", operation.c, ",", operation.d, ")");
}

// The first thing that goes wrong, if any.
std::optional<std::string> run(const Config& config, const std::vector<Operation>& operations) {
  FakeDevice device(config);
  for (const Operation& operation : operations) {
    switch (operation.kind) {
      case Operation::kArrive: {
        if (device.num_unfinished() > 12) break;
        // Few different tokens: texts share prefixes, and part at any place.
        std::mt19937 random(operation.a);
        const auto limit = static_cast<uint32_t>(std::min<int64_t>(device.capacity() - 1, 4 * config.page_size + 8));
        std::vector<int32_t> prompt(1 + operation.b % limit);
        for (int32_t& token : prompt) token = random() % 8 == 0 ? 1 : 0;
        const std::string salt = operation.c % 4 == 0 ? "tenant" : "";
        const int max_new = 1 + static_cast<int>(operation.d % (2 * config.page_size + 6));
        const int priority = static_cast<int>(operation.c / 4 % 3);
        const Request* const leader = device.arrive(prompt, max_new, salt, priority);
        for (uint32_t fork = 0; operation.c / 12 % 4 == 0 && fork < 1 + operation.c / 48 % 3; ++fork) {
          device.arrive(prompt, max_new, salt, priority, leader);
        }
        break;
      }
      case Operation::kStep:
        device.step();
        break;
      case Operation::kLaunch:
        if (config.steps_in_flight > 1) device.launch();
        break;
      case Operation::kCollect:
        device.collect();
        break;
      case Operation::kCancel:
        if (Request* const request = device.pick(operation.a); request != nullptr) device.finish(request);
        break;
      case Operation::kClear:
        device.cache().clear_prefix_cache();
        break;
    }
    device.check();
    if (!device.wrong().empty()) return device.wrong().front();
  }
  device.run_to_end();
  if (!device.wrong().empty()) return device.wrong().front();
  return std::nullopt;
}

// Leaves out what the failure does not need.
std::vector<Operation> shrink(const Config& config, std::vector<Operation> operations) {
  for (size_t chunk = operations.size() / 2; chunk >= 1; chunk /= 2) {
    for (size_t at = 0; at < operations.size();) {
      std::vector<Operation> fewer = operations;
      fewer.erase(fewer.begin() + static_cast<int64_t>(at),
                  fewer.begin() + static_cast<int64_t>(std::min(at + chunk, fewer.size())));
      if (run(config, fewer)) {
        operations = std::move(fewer);
      } else {
        at += chunk;
      }
    }
  }
  return operations;
}

// 60 seeds of 2,000 operations.
class StepPlannerModelTest : public testing::TestWithParam<uint32_t> {};
INSTANTIATE_TEST_SUITE_P(Seeds, StepPlannerModelTest, testing::Range(1u, 61u));

TEST_P(StepPlannerModelTest, NoPageIsLostAndNoTextMixed) {
  std::mt19937 random(GetParam());
  const auto draw = [&](uint32_t n) { return static_cast<int>(random() % n); };
  Config config;
  constexpr int kPageSizes[] = {1, 2, 3, 4, 8, 16, 64};
  config.page_size = kPageSizes[draw(7)];
  config.num_pages = 4 + draw(40);
  config.max_running = 1 + draw(7);
  config.budget = config.max_running + draw(6 * config.page_size);
  config.policy = draw(2) == 0 ? SchedulePolicy::kLpm : SchedulePolicy::kFcfs;
  config.prefix_caching = draw(4) != 0;
  config.steps_in_flight = 1 + draw(2);
  std::vector<Operation> operations;
  for (int i = 0; i < 2000; ++i) {
    constexpr Operation::Kind kKinds[] = {Operation::kArrive, Operation::kArrive,  Operation::kStep,
                                          Operation::kStep,   Operation::kStep,    Operation::kStep,
                                          Operation::kLaunch, Operation::kCollect, Operation::kCancel};
    Operation::Kind kind = kKinds[draw(9)];
    if (draw(50) == 0) kind = Operation::kClear;
    const auto argument = [&] { return static_cast<uint32_t>(random()); };
    operations.push_back({kind, argument(), argument(), argument(), argument()});
  }
  if (const auto failure = run(config, operations)) {
    const std::vector<Operation> fewest = shrink(config, operations);
    std::string script;
    for (const Operation& operation : fewest) script += "\n  " + to_string(operation);
    FAIL() << failure.value_or("") << "\nseed " << GetParam() << ": page size " << config.page_size << ", "
           << config.num_pages << " pages, " << config.max_running << " running, budget " << config.budget << ", "
           << (config.policy == SchedulePolicy::kLpm ? "lpm" : "fcfs") << ", prefix cache " << config.prefix_caching
           << ", in flight " << config.steps_in_flight << "; fails with " << run(config, fewest).value_or("")
           << " after" << script;
  }
}

}  // namespace
}  // namespace onepass
