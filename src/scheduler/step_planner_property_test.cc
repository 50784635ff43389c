// Random operations on a StepPlanner: no page is lost, and no text mixed with another.
#include <gtest/gtest.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <random>

#include "scheduler/step_planner_fake_device.h"

namespace onepass {
namespace {

using Config = FakeDeviceConfig;

// Random operations as data, so that a failure can be shrunk.
struct Operation {
  enum Kind : uint8_t { kArrive, kStep, kLaunch, kCollect, kCancel, kClear } kind;
  uint32_t a, b, c, d;
};

std::string to_string(const Operation& operation) {
  constexpr const char* kNames[] = {"arrive", "step", "launch", "collect", "cancel", "clear"};
  return str_cat(kNames[operation.kind], "(", operation.a, ",", operation.b, ",", operation.c, ",", operation.d, ")");
}

// False when there was nothing for it to do.
bool apply(const Config& config, const Operation& operation, FakeDevice& device) {
  switch (operation.kind) {
    case Operation::kArrive: {
      if (device.num_unfinished() > 12) return false;
      // Few different tokens: texts share prefixes, and part at any place.
      std::mt19937 random(operation.a);
      const auto limit = static_cast<uint32_t>(std::min<int64_t>(device.capacity() - 1, 4 * config.page_size + 8));
      std::vector<int32_t> prompt(1 + operation.b % limit);
      for (int32_t& token : prompt) token = random() % 8 == 0 ? 1 : 0;
      std::string salt = operation.c % 4 == 0 ? "tenant" : "";
      const int max_new = 1 + static_cast<int>(operation.d % (2 * config.page_size + 6));
      const int priority = static_cast<int>(operation.c / 4 % 3);
      // The next turn of a conversation whose last answer is not there yet.
      const Request* const earlier = operation.c / 192 % 4 == 0 ? device.pick(operation.a) : nullptr;
      if (earlier != nullptr && earlier->max_tokens < device.capacity()) {
        prompt = device.text(*earlier);
        salt = earlier->salt;
      }
      const Request* const leader = device.arrive(prompt, max_new, salt, priority);
      for (uint32_t fork = 0; operation.c / 12 % 4 == 0 && fork < 1 + operation.c / 48 % 3; ++fork) {
        device.arrive(prompt, max_new, salt, priority, leader);
      }
      return true;
    }
    case Operation::kStep:
      return device.step();
    case Operation::kLaunch:
      return config.steps_in_flight > 1 && device.launch();
    case Operation::kCollect:
      return device.collect();
    case Operation::kCancel: {
      Request* const request = device.pick(operation.a);
      if (request != nullptr) device.finish(request);
      return request != nullptr;
    }
    case Operation::kClear: {
      const int before = device.cache().num_cached();
      device.cache().clear_prefix_cache();
      return device.cache().num_cached() < before;
    }
  }
  return false;
}

struct Outcome {
  std::optional<std::string> failure;  // the first thing that goes wrong, if any
  int num_effective = 0;               // operations that did something
};

Outcome run(const Config& config, const std::vector<Operation>& operations) {
  Outcome outcome;
  FakeDevice device(config);
  try {
    for (const Operation& operation : operations) {
      outcome.num_effective += apply(config, operation, device) ? 1 : 0;
      device.check();
      if (!device.wrong().empty()) break;
    }
    if (device.wrong().empty()) device.run_to_end();
    if (!device.wrong().empty()) outcome.failure = device.wrong().front();
  } catch (const std::exception& error) {
    outcome.failure = error.what();
  }
  return outcome;
}

// Leaves out what the failure does not need.
std::vector<Operation> shrink(const Config& config, std::vector<Operation> operations) {
  for (size_t chunk = operations.size() / 2; chunk >= 1; chunk /= 2) {
    for (size_t at = 0; at < operations.size();) {
      std::vector<Operation> fewer = operations;
      fewer.erase(fewer.begin() + static_cast<int64_t>(at),
                  fewer.begin() + static_cast<int64_t>(std::min(at + chunk, fewer.size())));
      if (run(config, fewer).failure) {
        operations = std::move(fewer);
      } else {
        at += chunk;
      }
    }
  }
  return operations;
}

struct Scenario {
  Config config;
  std::vector<Operation> operations;
};

Scenario make_scenario(uint32_t seed) {
  std::mt19937 random(seed);
  const auto draw = [&](uint32_t n) { return static_cast<int>(random() % n); };
  Scenario scenario;
  Config& config = scenario.config;
  constexpr int kPageSizes[] = {1, 2, 3, 4, 8, 16, 64};
  config.page_size = kPageSizes[draw(7)];
  config.num_pages = 4 + draw(40);
  config.max_running = 1 + draw(7);
  config.budget = config.max_running + draw(6 * config.page_size);
  config.policy = draw(2) == 0 ? SchedulePolicy::kLpm : SchedulePolicy::kFcfs;
  config.prefix_caching = draw(4) != 0;
  config.steps_in_flight = 1 + draw(2);
  for (int i = 0; i < 2000; ++i) {
    constexpr Operation::Kind kKinds[] = {Operation::kArrive, Operation::kArrive,  Operation::kStep,
                                          Operation::kStep,   Operation::kStep,    Operation::kStep,
                                          Operation::kLaunch, Operation::kCollect, Operation::kCancel};
    Operation::Kind kind = kKinds[draw(9)];
    if (draw(50) == 0) kind = Operation::kClear;
    const auto argument = [&] { return static_cast<uint32_t>(random()); };
    scenario.operations.push_back({kind, argument(), argument(), argument(), argument()});
  }
  return scenario;
}

std::string describe(uint32_t seed, const Config& config) {
  return str_cat("seed ", seed, ": page size ", config.page_size, ", ", config.num_pages, " pages, ",
                 config.max_running, " running, budget ", config.budget, ", ",
                 config.policy == SchedulePolicy::kLpm ? "lpm" : "fcfs", ", prefix cache ",
                 config.prefix_caching ? "on" : "off", ", in flight ", config.steps_in_flight);
}

TEST(StepPlannerPropertyTest, NoPageIsLostAndNoTextMixed) {
  int num_effective = 0;
  for (uint32_t seed = 1; seed <= 100; ++seed) {
    const auto [config, operations] = make_scenario(seed);
    const Outcome outcome = run(config, operations);
    num_effective += outcome.num_effective;
    if (!outcome.failure) continue;
    const std::vector<Operation> fewest = shrink(config, operations);
    std::string script;
    for (const Operation& operation : fewest) script += "\n  " + to_string(operation);
    FAIL() << outcome.failure.value_or("") << "\n"
           << describe(seed, config) << "; fails with " << run(config, fewest).failure.value_or("") << " after"
           << script;
  }
  EXPECT_GE(num_effective, 100'000) << "too many operations find nothing to do";
  RecordProperty("effective_operations", num_effective);
}

}  // namespace
}  // namespace onepass
