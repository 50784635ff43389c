// Options of the commands that serve many requests.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "engine/model_runner.h"
#include "scheduler/scheduler.h"

namespace onepass {

// --max-running-requests, --kv-tokens, --schedule-policy, ...
class SchedulerCliOptions {
 public:
  // REQUIRES: EngineOptions have been added before, whose --chunk-size means the budget of a step here.
  void add_to(CLI::App& app);
  // Sizes the runner for the requests that run at the same time.
  void apply(ModelRunnerOptions& options) const;
  SchedulerOptions options() const;

 private:
  int max_running_requests_ = 64;
  int64_t kv_tokens_ = 0;
  double kv_memory_fraction_ = 0.4;
  std::string policy_ = "lpm";
  bool disable_prefix_cache_ = false;
  int overlap_ = 0;  // 1: asked for, -1: refused
  std::string trace_;
};

}  // namespace onepass
