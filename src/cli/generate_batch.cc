#include "cli/generate_batch.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "base/mapped_file.h"
#include "cli/batch_output.h"
#include "cli/logprobs_json.h"
#include "cli/prompt_line.h"

namespace onepass {
namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

// So many requests are handed to the scheduler at a time: enough for it to choose from.
constexpr int kMaxSubmitted = 4096;

constexpr auto kProgressInterval = std::chrono::milliseconds(100);

// What prompts from a pipe may take; a file is mapped.
constexpr size_t kMaxStreamBytes = size_t{1} << 30;

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

// The answers of one line as they grow.
struct Pending {
  TextLine line;
  nlohmann::json id;
  uint64_t seed = 0;  // of the first answer
  std::vector<GenerateResult> results;
};

ordered_json to_json(const Pending& pending, const Tokenizer& tokenizer) {
  ordered_json output;
  if (!pending.id.is_null()) output["id"] = pending.id;
  ordered_json choices = ordered_json::array();
  int generated = 0;
  for (size_t i = 0; i < pending.results.size(); ++i) {
    const GenerateResult& result = pending.results[i];
    ordered_json choice = {{"index", i},
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
  output["seed"] = pending.seed;
  output["usage"] = {{"prompt_tokens", stats.prompt_tokens},
                     {"cached_tokens", stats.cached_tokens},
                     {"completion_tokens", generated},
                     {"total_tokens", stats.prompt_tokens + generated}};
  return output;
}

// The prompts: a file is mapped, a pipe read to its end.
class Prompts {
 public:
  static StatusOr<Prompts> open(const std::string& path) {
    Prompts prompts;
    std::error_code error;
    if (std::filesystem::is_regular_file(path, error)) {
      ONEPASS_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
      prompts.file_.emplace(std::move(file));
    } else {
      ONEPASS_ASSIGN_OR_RETURN(prompts.text_, read_text_input(path, kMaxStreamBytes));
    }
    return prompts;
  }

  std::string_view text() const {
    if (!file_) return text_;
    return {reinterpret_cast<const char*>(file_->bytes().data()), file_->bytes().size()};
  }

 private:
  std::optional<MappedFile> file_;
  std::string text_;
};

// What earlier runs have done.
struct Finished {
  std::set<int64_t> lines;
  size_t num_failed = 0;
};

// An error when an answer is not to the line that has its number now.
StatusOr<Finished> match_answers(const std::vector<TextLine>& lines, const BatchOutput& output,
                                 const GenerateBatchOptions& options) {
  Finished finished;
  for (const EarlierAnswer& answer : output.earlier_answers()) {
    const auto line = std::lower_bound(lines.begin(), lines.end(), answer.line,
                                       [](const TextLine& a, int64_t number) { return a.number < number; });
    if (line == lines.end() || line->number != answer.line || input_hash(line->text) != answer.input_hash) {
      return invalid_argument(options.output_path, ": expected answers to ", options.prompts_path, ", found one to ",
                              "another line ", answer.line, " than it has now; give another --output");
    }
    if (finished.lines.insert(answer.line).second && answer.failed) ++finished.num_failed;
  }
  return finished;
}

// The exit status counts the lines that failed in earlier runs, too.
Status check_failures(const std::string& prompts_path, size_t num_failed, size_t count, size_t num_failed_earlier) {
  if (num_failed + num_failed_earlier == 0) return ok_status();
  std::string message = prompts_path + ": ";
  if (num_failed > 0) message += str_cat(num_failed, " of ", count, " lines failed");
  if (num_failed_earlier > 0)
    message += str_cat(num_failed > 0 ? ", " : "", num_failed_earlier, " lines failed earlier");
  return absl::AbortedError(message + " (the output says why)");
}

class BatchRun {
 public:
  BatchRun(const TextModel& model, Scheduler& scheduler, const GenerateBatchOptions& options, BatchOutput& output)
      : model_(model),
        scheduler_(scheduler),
        options_(options),
        output_(output),
        shows_progress_(!options.quiet && ::isatty(STDERR_FILENO) != 0) {}

  Status run(const std::vector<TextLine>& lines, const Finished& before) {
    const size_t num_finished_before = before.lines.size();
    size_t next = 0;
    while (num_ended_ < lines.size()) {
      const auto takes_more = [&] { return !interrupted.load() && scheduler_.health().ok(); };
      for (; next < lines.size() && next - num_ended_ < kMaxSubmitted && takes_more(); ++next) submit(lines[next]);
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
    return check_failures(options_.prompts_path, num_failed_, lines.size(), before.num_failed);
  }

 private:
  void submit(const TextLine& line) {
    SamplingParams defaults = options_.defaults;
    // Seeds of its own for every answer of every line; answer i takes seed + i.
    defaults.seed += static_cast<uint64_t>(line.number) * kMaxAnswers;
    auto parsed = parse_prompt_line(line.text, model_, defaults);
    if (!parsed.ok()) return fail(line, nullptr, parsed.status());
    // Before there is room for n answers.
    if (const Status valid = scheduler_.validate(parsed->request); !valid.ok()) return fail(line, parsed->id, valid);
    auto pending = std::make_shared<Pending>();
    pending->line = line;
    pending->id = parsed->id;
    pending->seed = parsed->request.sampling.seed;
    pending->results.resize(static_cast<size_t>(parsed->request.n));
    const auto id = scheduler_.submit(std::move(parsed->request), [this, pending](const GenerateOutput& output) {
      append_output(output, pending->results[output.index]);
      if (!output.is_last) return;
      const std::lock_guard lock(mutex_);
      finished_.push_back(pending);
      changed_.notify_one();
    });
    if (!id.ok()) fail(line, parsed->id, id.status());
  }

  void fail(const TextLine& line, const nlohmann::json& id, const Status& status) {
    ordered_json output = {{"error", std::string(status.message())}};
    if (!id.is_null()) output["id"] = id;
    if (!options_.quiet) {
      std::fprintf(stderr, "%s%s:%lld: %s\n", shows_progress_ ? "\r\033[K" : "", options_.prompts_path.c_str(),
                   static_cast<long long>(line.number), std::string(status.message()).c_str());
    }
    ++num_failed_;
    ++num_ended_;
    failures_.emplace_back(line, std::move(output));
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
        if (scheduler_.health().ok()) fail(pending->line, pending->id, failed->status);
        continue;
      }
      ++num_ended_;
      num_prompt_tokens_ += pending->results[0].stats.prompt_tokens;
      for (const GenerateResult& result : pending->results) num_tokens_ += result.stats.generated_tokens;
      ONEPASS_RETURN_IF_ERROR(write(pending->line, to_json(*pending, model_.tokenizer())));
    }
    // That the engine failed says nothing of the lines: they stay undone, and the same command computes them later.
    ONEPASS_RETURN_IF_ERROR(scheduler_.health());
    for (const auto& [line, failure] : std::exchange(failures_, {})) ONEPASS_RETURN_IF_ERROR(write(line, failure));
    return ok_status();
  }

  Status write(const TextLine& line, const ordered_json& fields) {
    return output_.write(line.number, input_hash(line.text), fields);
  }

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  void print_progress(size_t before, size_t count) {
    const Clock::time_point now = Clock::now();
    if (now - progress_printed_ < kProgressInterval) return;
    progress_printed_ = now;
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
    // vLLM's lines, for those who read them by program.
    const auto prompt_tokens = static_cast<double>(num_prompt_tokens_), tokens = static_cast<double>(num_tokens_);
    std::fprintf(stderr,
                 "Throughput: %.2f requests/s, %.2f total tokens/s, %.2f output tokens/s\n"
                 "Total num prompt tokens:  %lld\n"
                 "Total num output tokens:  %lld\n",
                 static_cast<double>(count - num_failed_) / seconds(), (prompt_tokens + tokens) / seconds(),
                 tokens / seconds(), static_cast<long long>(num_prompt_tokens_), static_cast<long long>(num_tokens_));
  }

  const TextModel& model_;
  Scheduler& scheduler_;
  const GenerateBatchOptions& options_;
  BatchOutput& output_;
  const bool shows_progress_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point progress_printed_ = start_;
  size_t num_ended_ = 0, num_failed_ = 0;
  int64_t num_prompt_tokens_ = 0, num_tokens_ = 0;
  std::vector<std::pair<TextLine, ordered_json>> failures_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Pending>> finished_;  // guarded by mutex_
};

}  // namespace

Status generate_batch(const TextModel& model, const GenerateBatchOptions& options) {
  ONEPASS_RETURN_IF_ERROR(check_distinct({{"--prompts", options.prompts_path},
                                          {"--output", options.output_path},
                                          {"--trace", options.scheduling.options().trace_path}}));
  ONEPASS_ASSIGN_OR_RETURN(const Prompts prompts, Prompts::open(options.prompts_path));
  std::vector<TextLine> lines = split_lines(prompts.text());
  if (lines.empty()) return invalid_argument(options.prompts_path, ": expected a request a line, found none");
  ONEPASS_ASSIGN_OR_RETURN(BatchOutput output, BatchOutput::open(options.output_path));
  ONEPASS_ASSIGN_OR_RETURN(const Finished finished, match_answers(lines, output, options));
  std::erase_if(lines, [&](const TextLine& line) { return finished.lines.contains(line.number); });
  ONEPASS_RETURN_IF_ERROR(output.cut_unfinished());
  if (lines.empty()) {
    if (!options.quiet) std::fprintf(stderr, "%s: every line is done already\n", options.output_path.c_str());
    return check_failures(options.prompts_path, 0, 0, finished.num_failed);
  }
  if (!finished.lines.empty() && !options.quiet) {
    std::fprintf(stderr, "%s: goes on after %zu finished lines\n", options.output_path.c_str(), finished.lines.size());
  }
  Status status = ok_status();
  {
    const InterruptGuard guard;
    ONEPASS_ASSIGN_OR_RETURN(
        const std::unique_ptr<Scheduler> scheduler,
        Scheduler::create(model.engine().runner(), &model.tokenizer(), options.scheduling.options()));
    BatchRun run(model, *scheduler, options, output);
    status = run.run(lines, finished);
    const Status stopped = scheduler->stop();  // the last callback for `run`
    if (status.ok()) status = stopped;
  }
  const Status closed = output.close();
  return status.ok() ? closed : status;
}

}  // namespace onepass
