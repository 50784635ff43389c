// onepass bench throughput: all requests at once, offline; prints all that SGLang's bench_offline_throughput and vLLM's
// bench throughput print, by their names, and more.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cli/bench_dataset.h"
#include "cli/command.h"
#include "cli/options.h"
#include "cli/scheduler_options.h"

namespace onepass {
namespace {

using Clock = std::chrono::steady_clock;

struct ThroughputOptions {
  EngineOptions engine;
  SchedulerCliOptions scheduling;
  BenchDataset dataset;
  bool dummy_weights = false;
  bool skip_warmup = false;
  bool json = false;
};

// When a request's tokens came, seconds from the start of the benchmark.
struct Timeline {
  std::vector<double> tokens;
  int cached_tokens = 0;
};

double percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0.0;
  const auto at = values.begin() + std::lround(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

double mean(const std::vector<double>& values) {
  return values.empty() ? 0.0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// New tokens a second at the end of the run: SGLang's figure, which it takes over its last 40 decode steps. The answer
// that ended last got one token a step.
double last_generation_throughput(const std::vector<Timeline>& timelines) {
  constexpr int64_t kSteps = 40;
  const std::vector<double>* last = nullptr;
  for (const Timeline& timeline : timelines) {
    if (timeline.tokens.empty()) continue;
    if (last == nullptr || timeline.tokens.back() > last->back()) last = &timeline.tokens;
  }
  if (last == nullptr) return 0.0;
  const double start = std::ssize(*last) > 1 ? *(last->end() - 1 - std::min(kSteps, std::ssize(*last) - 1)) : 0.0;
  int64_t count = 0;
  for (const Timeline& timeline : timelines) {
    count += timeline.tokens.end() - std::upper_bound(timeline.tokens.begin(), timeline.tokens.end(), start);
  }
  return last->back() > start ? static_cast<double>(count) / (last->back() - start) : 0.0;
}

// Submits all and waits for the last answer.
StatusOr<std::vector<Timeline>> run_all(Scheduler& scheduler, const std::vector<BenchRequest>& requests,
                                        double& seconds) {
  std::vector<Timeline> timelines(requests.size());
  std::mutex mutex;
  std::condition_variable ended;
  size_t num_ended = 0;
  Status error = ok_status();
  const Clock::time_point start = Clock::now();
  const auto now = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  size_t num_submitted = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    timelines[i].tokens.reserve(requests[i].output_len);
    GenerateRequest request;
    request.prompt = requests[i].prompt;
    request.sampling.temperature = 0.0f;
    request.sampling.max_new_tokens = requests[i].output_len;
    request.sampling.ignore_eos = true;
    const auto id = scheduler.submit(std::move(request), [&, i](const GenerateOutput& output) {
      timelines[i].tokens.insert(timelines[i].tokens.end(), output.tokens.size(), now());
      if (!output.is_last) return;
      timelines[i].cached_tokens = output.stats.cached_tokens;
      const std::lock_guard lock(mutex);
      if (!output.status.ok()) error = output.status;
      ++num_ended;
      ended.notify_one();
    });
    if (!id.ok()) {
      error = id.status();
      break;
    }
    ++num_submitted;
  }
  std::unique_lock lock(mutex);
  ended.wait(lock, [&] { return num_ended == num_submitted; });
  seconds = now();
  ONEPASS_RETURN_IF_ERROR(error);
  return timelines;
}

// The text form of the result.
void print(const nlohmann::json& result) {
  const auto number = [&](const std::string& key) { return result.at(key).get<double>(); };
  const auto print_count = [&](const char* title, const char* key) {
    std::printf("%-42s %lld\n", title, static_cast<long long>(result.at(key).get<int64_t>()));
  };
  const auto print_number = [&](const std::string& title, const std::string& key) {
    std::printf("%-42s %.2f\n", title.c_str(), number(key));
  };
  std::printf("====== Offline Throughput Benchmark Result =======\n");
  std::printf("%-42s %s\n", "Backend:", result.at("backend").get<std::string>().c_str());
  print_count("Successful requests:", "successful_requests");
  print_count("Incomplete requests:", "incomplete_requests");
  print_number("Benchmark duration (s):", "total_latency");
  print_count("Total input tokens:", "total_input_tokens");
  print_count("  of which found in the prefix cache:", "cached_tokens");
  print_count("Total generated tokens:", "total_output_tokens");
  print_count("Tokens computed:", "computed_tokens");
  print_number("Last generation throughput (tok/s):", "last_gen_throughput");
  print_number("Request throughput (req/s):", "request_throughput");
  print_number("Input token throughput (tok/s):", "input_throughput");
  print_number("Output token throughput (tok/s):", "output_throughput");
  print_number("Total token throughput (tok/s):", "total_throughput");
  const std::pair<const char*, const char*> latencies[] = {{"ttft_ms", "TTFT (ms):"},
                                                           {"tpot_ms", "TPOT (ms):"},
                                                           {"itl_ms", "ITL (ms):"},
                                                           {"e2e_latency_ms", "E2E latency (ms):"}};
  for (const auto& [key, title] : latencies) {
    for (const auto& [prefix, word] : {std::pair{"mean_", "Mean "}, {"median_", "Median "}, {"p99_", "P99 "}}) {
      print_number(std::string(word) + title, std::string(prefix) + key);
    }
  }
  print_count("Steps:", "steps");
  std::printf("%-42s %.1f\n", "Scheduler time outside forward (us/step):", number("host_us_per_step"));
  std::printf("%-42s %.1f, %.1f between steps, > 10 us in %.1f%% of them\n",
              "Device time (us/step):", number("device_us_per_step"), number("device_idle_us_per_step"),
              100 * number("device_idle_steps"));
  std::printf("%-42s %.2f%%\n", "Device without work:", 100 * number("device_idle_fraction"));
  std::printf("%-42s %lld / %lld\n",
              "Retractions / evicted pages:", static_cast<long long>(result.at("retractions").get<int64_t>()),
              static_cast<long long>(result.at("evicted_pages").get<int64_t>()));
  std::printf("==================================================\n");
  // vLLM's three lines.
  std::printf("Throughput: %.2f requests/s, %.2f total tokens/s, %.2f output tokens/s\n", number("requests_per_second"),
              number("tokens_per_second"), number("output_throughput"));
  std::printf("Total num prompt tokens:  %lld\n",
              static_cast<long long>(result.at("total_input_tokens").get<int64_t>()));
  std::printf("Total num output tokens:  %lld\n",
              static_cast<long long>(result.at("total_output_tokens").get<int64_t>()));
}

Status run(const ThroughputOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(ModelRunnerOptions runner_options, options.engine.runner_options());
  runner_options.dummy_weights = options.dummy_weights;
  options.scheduling.apply(runner_options);
  ONEPASS_ASSIGN_OR_RETURN(const std::unique_ptr<ModelRunner> runner, ModelRunner::create(runner_options));
  std::unique_ptr<Tokenizer> tokenizer;
  if (std::filesystem::exists(options.engine.model_dir() + "/tokenizer.json")) {
    ONEPASS_ASSIGN_OR_RETURN(tokenizer, Tokenizer::load(options.engine.model_dir()));
  }
  // Page 0 of the pool is no request's.
  const BenchLimits limits = {
      .vocab_size = runner->config().vocab_size,
      .context_length = runner->options().context_length,
      .cache_tokens = int64_t{runner->pool().config().num_pages - 1} * runner->options().page_size};
  ONEPASS_ASSIGN_OR_RETURN(const std::vector<BenchRequest> requests, options.dataset.make(limits, tokenizer.get()));
  ONEPASS_ASSIGN_OR_RETURN(const std::unique_ptr<Scheduler> scheduler,
                           Scheduler::create(*runner, tokenizer.get(), options.scheduling.options()));
  const int room = static_cast<int>(std::min<int64_t>(limits.context_length, limits.cache_tokens));
  double seconds = 0.0;
  if (!options.skip_warmup && room >= 2) {
    // Weights into memory, the KV cache's pages into being; with tokens that no request begins with.
    const int output_len = std::min(4, room - 1);
    BenchRequest warmup = {.prompt = std::vector<int32_t>(std::min(64, room - output_len), 0),
                           .output_len = output_len};
    ONEPASS_RETURN_IF_ERROR(run_all(*scheduler, {warmup}, seconds).status());
    scheduler->clear_prefix_cache();
  }
  const SchedulerStats before = scheduler->stats();
  ONEPASS_ASSIGN_OR_RETURN(const std::vector<Timeline> timelines, run_all(*scheduler, requests, seconds));
  const SchedulerStats stats = scheduler->stats();
  ONEPASS_RETURN_IF_ERROR(scheduler->stop());

  int64_t input = 0, output = 0, cached = 0, num_whole = 0;
  std::vector<double> ttft, tpot, itl, latency;
  for (size_t i = 0; i < requests.size(); ++i) {
    const std::vector<double>& times = timelines[i].tokens;
    input += std::ssize(requests[i].prompt);
    output += std::ssize(times);
    cached += timelines[i].cached_tokens;
    if (std::ssize(times) == requests[i].output_len) ++num_whole;
    if (times.empty()) continue;
    ttft.push_back(times.front() * 1e3);
    latency.push_back(times.back() * 1e3);
    if (times.size() > 1) tpot.push_back((times.back() - times.front()) * 1e3 / static_cast<double>(times.size() - 1));
    for (size_t j = 1; j < times.size(); ++j) itl.push_back((times[j] - times[j - 1]) * 1e3);
  }
  const auto steps = static_cast<double>(std::max<int64_t>(1, stats.steps - before.steps));
  const double host_us = (stats.host_seconds - before.host_seconds) / steps * 1e6;
  const double device_us = (stats.device.busy_seconds - before.device.busy_seconds) / steps * 1e6;
  const double idle_us = (stats.device.idle_seconds - before.device.idle_seconds) / steps * 1e6;
  const auto idle_steps = static_cast<double>(stats.device.idle_steps - before.device.idle_steps);
  const int64_t computed = stats.computed_tokens - before.computed_tokens;
  const int64_t num_short = std::ssize(requests) - num_whole;
  const double requests_per_second = static_cast<double>(num_whole) / seconds;
  const double tokens_per_second = static_cast<double>(input + output) / seconds;
  nlohmann::json result = {
      {"model", options.engine.model_dir()},
      {"backend", "onepass"},
      {"successful_requests", num_whole},
      {"incomplete_requests", num_short},
      {"total_latency", seconds},
      {"total_input_tokens", input},
      {"total_output_tokens", output},
      {"last_gen_throughput", last_generation_throughput(timelines)},
      {"request_throughput", requests_per_second},
      {"input_throughput", static_cast<double>(input) / seconds},
      {"output_throughput", static_cast<double>(output) / seconds},
      {"total_throughput", tokens_per_second},
      // The same by vLLM's names.
      {"elapsed_time", seconds},
      {"num_requests", num_whole},
      {"total_num_tokens", input + output},
      {"requests_per_second", requests_per_second},
      {"tokens_per_second", tokens_per_second},
      {"cached_tokens", cached},
      {"computed_tokens", computed},
      {"steps", stats.steps - before.steps},
      {"retractions", stats.retractions - before.retractions},
      {"evicted_pages", stats.evicted_pages - before.evicted_pages},
      {"host_us_per_step", host_us},
      {"device_us_per_step", device_us},
      {"device_idle_us_per_step", idle_us},
      {"device_idle_steps", idle_steps / steps},
      // Of the whole time, whatever the reason: also where a step was not launched before the last one was over.
      {"device_idle_fraction", std::max(0.0, 1.0 - (stats.device.busy_seconds - before.device.busy_seconds) / seconds)},
  };
  const auto add = [&](const char* name, const std::vector<double>& values) {
    result[std::string("mean_") + name] = mean(values);
    result[std::string("median_") + name] = percentile(values, 0.5);
    result[std::string("p99_") + name] = percentile(values, 0.99);
  };
  add("ttft_ms", ttft);
  add("tpot_ms", tpot);
  add("itl_ms", itl);
  add("e2e_latency_ms", latency);
  result["max_ttft_ms"] = percentile(ttft, 1.0);
  if (options.json) {
    std::printf("%s\n", result.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    print(result);
  }
  if (num_short > 0) {
    return absl::InternalError(str_cat("requests: expected ", requests.size(),
                                       " answers of the length asked for, found ", num_short, " shorter ones"));
  }
  return ok_status();
}

}  // namespace

void add_bench_throughput_command(CLI::App& bench, Action& action) {
  CLI::App* command = bench.add_subcommand("throughput", "Many requests at once, offline");
  auto options = std::make_shared<ThroughputOptions>();
  options->engine.add_to(*command);
  options->scheduling.add_to(*command);
  options->dataset.add_to(*command);
  command->add_flag("--dummy-weights", options->dummy_weights, "random weights: the folder needs a config.json alone");
  command->add_flag("--skip-warmup", options->skip_warmup, "measure from the first request on");
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options, &action] {
    options->engine.check();
    options->dataset.check();
    action = [options] { return run(*options); };
  });
}

}  // namespace onepass
