#include "scheduler/trace.h"

#include <cerrno>
#include <cstring>

#include "absl/strings/str_format.h"

namespace onepass {
namespace {

constexpr int kEngine = 1, kRequests = 2;  // "processes" of the trace: groups of lanes

// Steps that a new reason to wait must last to be shown: a token budget that one prompt has used up, say, would cut
// every lane of the queue in two.
constexpr int kSteadySteps = 4;

}  // namespace

StatusOr<std::unique_ptr<Trace>> Trace::create(const std::string& path) {
  std::FILE* const file = std::fopen(path.c_str(), "w");
  if (file == nullptr) return absl::PermissionDeniedError(str_cat(path, ": ", std::strerror(errno)));
  return std::unique_ptr<Trace>(new Trace(file, path));
}

Trace::Trace(std::FILE* file, std::string path) : file_(file), path_(std::move(path)) {
  std::fputs("[\n", file_);
  event("process_name", 'M', kEngine, 0, 0, R"(,"args":{"name":"engine"})");
  event("thread_name", 'M', kEngine, 0, 0, R"(,"args":{"name":"steps"})");
  event("process_name", 'M', kRequests, 0, 0, R"(,"args":{"name":"requests"})");
}

Trace::~Trace() { (void)close(); }

Status Trace::close() {
  if (file_ == nullptr) return ok_status();
  // The last event has a comma behind it: an empty one ends the list.
  std::fputs("{}]\n", file_);
  const bool failed = std::ferror(file_) != 0;
  const bool closed = std::fclose(file_) == 0;
  file_ = nullptr;
  return failed || !closed ? absl::DataLossError(str_cat(path_, ": cannot write")) : ok_status();
}

double Trace::micros(Clock::time_point time) const {
  return std::chrono::duration<double, std::micro>(time - start_).count();
}

void Trace::event(std::string_view name, char phase, int process, uint64_t lane, double time, const std::string& more) {
  absl::FPrintF(file_, "{\"name\":\"%s\",\"ph\":\"%c\",\"pid\":%d,\"tid\":%d,\"ts\":%.1f%s},\n", std::string(name),
                phase, process, lane, time, more);
}

void Trace::arrived(const Request& request) {
  event("thread_name", 'M', kRequests, request.id, 0,
        absl::StrFormat(",\"args\":{\"name\":\"request %d: %d tokens\"}", request.id, request.num_prompt_tokens));
  waits_[request.id] = {.since = micros(Clock::now())};
}

void Trace::update_wait(const Request& request, Wait& wait, double now) {
  const WaitReason reason = request.wait_reason;
  if (wait.reason == WaitReason::kStep) wait.reason = reason;  // the first that is known
  if (reason == wait.reason) {
    wait.next_steps = 0;
    return;
  }
  if (reason != wait.next || wait.next_steps == 0) {
    wait.next = reason;
    wait.next_since = now;
    wait.next_steps = 0;
  }
  if (++wait.next_steps < kSteadySteps) return;
  write_wait(request, wait, wait.next_since);
  wait = {.since = wait.next_since, .reason = reason};
}

void Trace::write_wait(const Request& request, const Wait& wait, double end) {
  event(str_cat("waits for ", to_string(wait.reason)), 'X', kRequests, request.id, wait.since,
        absl::StrFormat(",\"dur\":%.1f,\"cname\":\"terrible\"", end - wait.since));
}

void Trace::end_wait(const Request& request, double now) {
  const auto wait = waits_.find(request.id);
  if (wait != waits_.end()) write_wait(request, wait->second, now);
}

void Trace::admitted(const Request& request) {
  end_wait(request, micros(Clock::now()));
  waits_.erase(request.id);
}

void Trace::retracted(const Request& request) {
  const double now = micros(Clock::now());
  event("retracted", 'i', kRequests, request.id, now, R"(,"s":"t")");
  waits_[request.id] = {.since = now, .reason = WaitReason::kRetraction};
}

void Trace::ended(const Request& request, std::string_view reason) {
  const double now = micros(Clock::now());
  end_wait(request, now);
  waits_.erase(request.id);
  event(str_cat("ends: ", reason), 'i', kRequests, request.id, now, R"(,"s":"t")");
}

void Trace::step(const StepPlan& plan, Clock::time_point begin, Clock::time_point end, const StepPlanner& planner,
                 const Pages& pages, int64_t evicted_pages) {
  const double from = micros(begin), length = micros(end) - from;
  int prefill = 0, decode = 0;
  for (const StepPlan::Item& item : plan.items) {
    const bool is_decode = item.first_position >= item.request->num_prompt_tokens && item.num_tokens == 1;
    (is_decode ? decode : prefill) += item.num_tokens;
    event(is_decode ? "decode" : "prefill", 'X', kRequests, item.request->id, from,
          absl::StrFormat(",\"dur\":%.1f,\"args\":{\"first\":%d,\"tokens\":%d}", length, item.first_position,
                          item.num_tokens));
  }
  for (const StepPlan::Fork& fork : plan.forks) {
    event("forks", 'i', kRequests, fork.request->id, from, R"(,"s":"t")");
  }
  event(
      str_cat("step ", ++num_steps_), 'X', kEngine, 0, from,
      absl::StrFormat(",\"dur\":%.1f,\"args\":{\"prefill tokens\":%d,\"decode tokens\":%d}", length, prefill, decode));
  event("tokens", 'C', kEngine, 0, from, absl::StrFormat(",\"args\":{\"prefill\":%d,\"decode\":%d}", prefill, decode));
  event(
      "requests", 'C', kEngine, 0, from,
      absl::StrFormat(",\"args\":{\"running\":%d,\"waiting\":%d}", planner.running().size(), planner.waiting().size()));
  event("pages", 'C', kEngine, 0, from,
        absl::StrFormat(",\"args\":{\"of requests\":%d,\"prefix cache\":%d,\"free\":%d}",
                        pages.total - pages.free - pages.cached, pages.cached, pages.free));
  if (evicted_pages > evicted_pages_) {
    event(absl::StrFormat("evicts %d pages", evicted_pages - evicted_pages_), 'i', kEngine, 0, from, R"(,"s":"t")");
    evicted_pages_ = evicted_pages;
  }
  for (const Request* request : planner.waiting()) {
    const auto wait = waits_.find(request->id);
    if (wait != waits_.end()) update_wait(*request, wait->second, from);
  }
}

}  // namespace onepass
