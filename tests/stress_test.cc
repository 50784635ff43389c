// Hundreds of requests over scarce pages on the CPU.
#include "scheduler_stress.h"

namespace onepass {
namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kRequests = 96;
#else
constexpr int kRequests = 256;
#endif

// Evicted, retracted and taken up again, beside others that are cancelled: every answer is the one that it is alone.
TEST(StressTest, EachAnswerIsWhatItIsAlone) {
  SchedulerStress stress({.model = "models/shakespeare-1m", .num_requests = kRequests});
  stress.run({.page_size = 8, .max_requests = 48, .max_tokens_per_step = 128}, {.steps_in_flight = 1});
  stress.run({.page_size = 16, .max_requests = 32, .max_tokens_per_step = 200}, {.steps_in_flight = 2});
}

}  // namespace
}  // namespace onepass
