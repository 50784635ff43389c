#include "cli/scheduler_options.h"

#include "cli/options.h"

#include <limits>

namespace onepass {

void SchedulerCliOptions::add_to(CLI::App& app) {
  // A step of the scheduler is more than a chunk of one prompt.
  app.get_option("--chunk-size")
      ->description(
          "tokens of one step, of prompts and answers together; raised to --max-running-requests when smaller; 0: 512 "
          "on "
          "the CPU, 8192 on a GPU");
  const char* group = "Scheduling";
  app.add_option("--max-running-requests", max_running_requests_, "requests computed at the same time")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->group(group);
  app.add_option("--kv-tokens", kv_tokens_,
                 "tokens that the KV cache holds; 0: what all running requests can need, as far as memory goes")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
      ->capture_default_str()
      ->group(group);
  app.add_option("--kv-memory-fraction", kv_memory_fraction_,
                 "cpu: of the machine's memory, what the KV cache takes at most when --kv-tokens is 0")
      ->check(number_range(0.001, 1.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--schedule-policy", policy_,
                 "who is admitted first: lpm (longest cached prefix) or fcfs (first come, first served)")
      ->check(CLI::IsMember({"lpm", "fcfs"}))
      ->capture_default_str()
      ->group(group);
  app.add_flag("--disable-prefix-cache", disable_prefix_cache_, "compute every prompt anew")->group(group);
  app.add_flag("--overlap,!--disable-overlap", overlap_,
               "plan and launch a step while the one before it is computed: always, or never; unset, on a GPU")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
      ->group(group);
  app.add_option("--trace", trace_, "write a trace of all steps there, for ui.perfetto.dev")->group(group);
}

void SchedulerCliOptions::apply(ModelRunnerOptions& options) const {
  options.max_requests = max_running_requests_;
  options.kv_tokens = kv_tokens_;
  options.kv_memory_fraction = kv_memory_fraction_;
}

SchedulerOptions SchedulerCliOptions::options() const {
  return {.longest_prefix_first = policy_ == "lpm",
          .prefix_caching = !disable_prefix_cache_,
          .max_queued_requests = std::numeric_limits<int>::max(),
          .steps_in_flight = overlap_ == 0  ? 0
                             : overlap_ > 0 ? 2
                                            : 1,
          .trace_path = trace_};
}

}  // namespace onepass
