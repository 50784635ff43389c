#include "cli/generate_batch.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "base/mapped_file.h"
#include "cli/logprobs_json.h"
#include "cli/prompt_line.h"

namespace onepass {
namespace {

using Clock = std::chrono::steady_clock;

// So many requests are handed to the scheduler at a time: enough for it to choose from.
constexpr int kMaxSubmitted = 4096;

// Signal handlers reach nothing but objects of static lifetime.
std::atomic<bool> interrupted{false};

void on_interrupt(int) { interrupted.store(true); }

// Ctrl-C ends the work with what is written so far; a second one ends the program.
class InterruptGuard {
 public:
  InterruptGuard() {
    struct sigaction handler = {};
    handler.sa_handler = on_interrupt;
    handler.sa_flags = static_cast<int>(SA_RESETHAND);
    ::sigaction(SIGINT, &handler, &before_);
  }
  ~InterruptGuard() { ::sigaction(SIGINT, &before_, nullptr); }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

 private:
  struct sigaction before_ = {};
};

struct Line {
  int number;
  std::string_view text;
};

std::vector<Line> split_lines(const std::string& text) {
  std::vector<Line> lines;
  int number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    ++number;
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) lines.push_back({number, line});
    begin = end + 1;
  }
  return lines;
}

// Numbers of the lines that the output of an earlier run holds. What was being written when that was interrupted is cut
// off.
StatusOr<std::set<int>> finished_lines(const std::string& path) {
  std::set<int> finished;
  if (path.empty() || !std::filesystem::exists(path)) return finished;
  ONEPASS_ASSIGN_OR_RETURN(std::string text, read_text_file(path));
  const size_t size = text.size(), whole = text.rfind('\n') + 1;  // npos + 1 is 0
  text.resize(whole);
  for (const Line& line : split_lines(text)) {
    const auto value = nlohmann::json::parse(line.text, nullptr, /*allow_exceptions=*/false);
    if (!value.is_object() || !value.contains("line") || !value["line"].is_number_integer()) {
      return invalid_argument(path, ":", line.number, ": expected a line of an earlier run, found ",
                              printable(line.text, 60));
    }
    finished.insert(value["line"].get<int>());
  }
  if (whole < size) {
    std::error_code error;
    std::filesystem::resize_file(path, whole, error);
    if (error) return absl::DataLossError(str_cat(path, ": ", error.message()));
  }
  return finished;
}

// The answers of one line as they grow.
struct Pending {
  int line;
  nlohmann::json id;
  std::vector<GenerateResult> results;
};

nlohmann::json to_json(const Pending& pending, const Tokenizer& tokenizer) {
  nlohmann::json output = {{"line", pending.line}};
  if (!pending.id.is_null()) output["id"] = pending.id;
  nlohmann::json choices = nlohmann::json::array();
  int generated = 0;
  for (size_t i = 0; i < pending.results.size(); ++i) {
    const GenerateResult& result = pending.results[i];
    nlohmann::json choice = {{"index", i},
                             {"text", result.text},
                             {"token_ids", result.tokens},
                             {"finish_reason", to_string(result.finish_reason)}};
    if (!result.matched_stop.empty()) choice["matched_stop"] = result.matched_stop;
    if (!result.logprobs.empty()) choice["logprobs"] = logprobs_json(tokenizer, result.logprobs);
    choices.push_back(std::move(choice));
    generated += result.stats.generated_tokens;
  }
  const GenerateStats& stats = pending.results[0].stats;
  output["choices"] = std::move(choices);
  output["usage"] = {{"prompt_tokens", stats.prompt_tokens},
                     {"cached_tokens", stats.cached_tokens},
                     {"completion_tokens", generated},
                     {"total_tokens", stats.prompt_tokens + generated}};
  return output;
}

class BatchRun {
 public:
  BatchRun(const TextModel& model, Scheduler& scheduler, const GenerateBatchOptions& options, std::FILE* output)
      : model_(model),
        scheduler_(scheduler),
        options_(options),
        output_(output),
        shows_progress_(!options.quiet && ::isatty(STDERR_FILENO) != 0) {}

  Status run(const std::vector<Line>& lines, size_t num_finished_before) {
    size_t next = 0;
    while (num_ended_ < lines.size()) {
      for (; next < lines.size() && next - num_ended_ < kMaxSubmitted && !interrupted.load(); ++next)
        submit(lines[next]);
      ONEPASS_RETURN_IF_ERROR(write_finished());
      if (shows_progress_) print_progress(num_finished_before, lines.size());
      if (interrupted.load()) break;
    }
    if (shows_progress_) std::fprintf(stderr, "\r\033[K");
    if (interrupted.load()) {
      return absl::CancelledError(str_cat("interrupted: ", num_finished_before + num_ended_, " of ",
                                          num_finished_before + lines.size(),
                                          " lines are done; the same command with --output goes on from there"));
    }
    if (!options_.quiet) print_summary(lines.size());
    if (num_failed_ > 0) {
      return absl::AbortedError(str_cat(options_.prompts_path, ": ", num_failed_, " of ", lines.size(),
                                        " lines failed (the output says why)"));
    }
    return ok_status();
  }

 private:
  void submit(const Line& line) {
    SamplingParams defaults = options_.defaults;
    defaults.seed += static_cast<uint64_t>(line.number);
    auto parsed = parse_prompt_line(line.text, model_, defaults);
    if (!parsed.ok()) return fail(line.number, nullptr, parsed.status());
    auto pending = std::make_shared<Pending>();
    pending->line = line.number;
    pending->id = parsed->id;
    pending->results.resize(static_cast<size_t>(std::max(1, parsed->request.n)));
    const auto id = scheduler_.submit(std::move(parsed->request), [this, pending](const GenerateOutput& output) {
      append_output(output, pending->results[output.index]);
      if (!output.is_last) return;
      const std::lock_guard lock(mutex_);
      finished_.push_back(pending);
      changed_.notify_one();
    });
    if (!id.ok()) fail(line.number, parsed->id, id.status());
  }

  void fail(int line, const nlohmann::json& id, const Status& status) {
    nlohmann::json output = {{"line", line}, {"error", std::string(status.message())}};
    if (!id.is_null()) output["id"] = id;
    if (!options_.quiet) {
      std::fprintf(stderr, "%s%s:%d: %s\n", shows_progress_ ? "\r\033[K" : "", options_.prompts_path.c_str(), line,
                   std::string(status.message()).c_str());
    }
    ++num_failed_;
    ++num_ended_;
    failures_.push_back(std::move(output));
  }

  // Waits a moment for answers, and writes those that are whole.
  Status write_finished() {
    std::deque<std::shared_ptr<Pending>> finished;
    {
      std::unique_lock lock(mutex_);
      if (failures_.empty()) {
        changed_.wait_for(lock, std::chrono::milliseconds(100), [&] { return !finished_.empty(); });
      }
      finished.swap(finished_);
    }
    for (const std::shared_ptr<Pending>& pending : finished) {
      const auto failed = std::find_if(pending->results.begin(), pending->results.end(),
                                       [](const GenerateResult& result) { return !result.status.ok(); });
      if (failed != pending->results.end()) {
        fail(pending->line, pending->id, failed->status);
        continue;
      }
      ++num_ended_;
      for (const GenerateResult& result : pending->results) num_tokens_ += result.stats.generated_tokens;
      ONEPASS_RETURN_IF_ERROR(write(to_json(*pending, model_.tokenizer())));
    }
    for (const nlohmann::json& failure : std::exchange(failures_, {})) ONEPASS_RETURN_IF_ERROR(write(failure));
    return ok_status();
  }

  Status write(const nlohmann::json& line) {
    const std::string text = line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    if (std::fwrite(text.data(), 1, text.size(), output_) == text.size() && std::fflush(output_) == 0)
      return ok_status();
    return absl::DataLossError(
        str_cat(options_.output_path.empty() ? "stdout" : options_.output_path, ": cannot write"));
  }

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  void print_progress(size_t before, size_t count) {
    const SchedulerStats stats = scheduler_.stats();
    const size_t done = before + num_ended_, total = before + count;
    constexpr size_t kWidth = 24;
    std::string bar(kWidth * done / std::max<size_t>(1, total), '#');
    bar.resize(kWidth, '.');
    std::fprintf(stderr, "\r\033[K[%s] %zu/%zu  %.1f tok/s  %d running, %d waiting", bar.c_str(), done, total,
                 static_cast<double>(stats.generated_tokens) / seconds(), stats.running_requests,
                 stats.waiting_requests);
    std::fflush(stderr);
  }

  void print_summary(size_t count) const {
    const SchedulerStats stats = scheduler_.stats();
    std::fprintf(stderr,
                 "%zu lines in %.2f s: %lld prompt tokens (%lld found in the prefix cache), %lld new ones, %.1f tok/s; "
                 "%lld retractions\n",
                 count, seconds(), static_cast<long long>(stats.prompt_tokens),
                 static_cast<long long>(stats.cached_tokens), static_cast<long long>(num_tokens_),
                 static_cast<double>(num_tokens_) / seconds(), static_cast<long long>(stats.retractions));
  }

  const TextModel& model_;
  Scheduler& scheduler_;
  const GenerateBatchOptions& options_;
  std::FILE* const output_;
  const bool shows_progress_;
  const Clock::time_point start_ = Clock::now();
  size_t num_ended_ = 0, num_failed_ = 0;
  int64_t num_tokens_ = 0;
  std::vector<nlohmann::json> failures_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Pending>> finished_;  // guarded by mutex_
};

}  // namespace

Status generate_batch(const TextModel& model, const GenerateBatchOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(const std::string text, read_text_file(options.prompts_path));
  std::vector<Line> lines = split_lines(text);
  if (lines.empty()) return invalid_argument(options.prompts_path, ": expected a request a line, found none");
  ONEPASS_ASSIGN_OR_RETURN(const std::set<int> finished, finished_lines(options.output_path));
  std::erase_if(lines, [&](const Line& line) { return finished.contains(line.number); });
  if (lines.empty()) {
    if (!options.quiet) std::fprintf(stderr, "%s: every line is done already\n", options.output_path.c_str());
    return ok_status();
  }
  if (!finished.empty() && !options.quiet) {
    std::fprintf(stderr, "%s: goes on after %zu finished lines\n", options.output_path.c_str(), finished.size());
  }
  std::FILE* output = stdout;
  if (!options.output_path.empty()) {
    output = std::fopen(options.output_path.c_str(), "a");
    if (output == nullptr) {
      return absl::PermissionDeniedError(str_cat(options.output_path, ": ", std::strerror(errno)));
    }
  }
  Status status = ok_status();
  {
    const InterruptGuard guard;
    ONEPASS_ASSIGN_OR_RETURN(
        const std::unique_ptr<Scheduler> scheduler,
        Scheduler::create(model.engine().runner(), &model.tokenizer(), options.scheduling.options()));
    BatchRun run(model, *scheduler, options, output);
    status = run.run(lines, finished.size());
    const Status stopped = scheduler->stop();  // the last callback for `run`
    if (status.ok()) status = stopped;
  }
  if (output != stdout && std::fclose(output) != 0 && status.ok()) {
    status = absl::DataLossError(str_cat(options.output_path, ": cannot write"));
  }
  return status;
}

}  // namespace onepass
