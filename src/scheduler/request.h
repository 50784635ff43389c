// One sequence being generated, as the scheduler's parts see it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/sampler.h"

namespace onepass {

// Why a request was not admitted when the last step was planned.
enum class WaitReason : uint8_t { kNone, kStep, kRequests, kPages, kBudget, kPrefix, kRetraction };

constexpr std::string_view to_string(WaitReason reason) {
  constexpr std::string_view kNames[] = {"nothing",
                                         "the next step",
                                         "a place among those that run",
                                         "pages",
                                         "token budget",
                                         "a prefix that another request computes",
                                         "others after a retraction"};
  return kNames[static_cast<int>(reason)];
}

// Owned by the Scheduler (or a test); the planner writes the second half, whoever learns tokens appends to `tokens`.
struct Request {
  // Fixed at arrival.
  uint64_t id = 0;              // in order of arrival
  std::vector<int32_t> tokens;  // the prompt, then what has been generated and is known
  int num_prompt_tokens = 0;
  int max_tokens = 0;  // of prompt and answer in all
  int priority = 0;    // the higher, the earlier
  std::string salt;    // shares pages with requests of the same salt only
  // Siblings of one prompt (n > 1): they start from the first one's pages and logits once these are there.
  const Request* fork_of = nullptr;
  // Chooses its tokens on the device; null in tests that have none.
  std::unique_ptr<Sampler> sampler;

  // The planner's.
  enum class State : uint8_t { kWaiting, kRunning, kFinished };
  State state = State::kWaiting;
  int slot = -1;            // while running
  int num_computed = 0;     // tokens whose K and V are in the cache once all planned steps have run
  int num_in_flight = 0;    // planned steps whose sampled token is not known yet
  bool is_planned = false;  // in the step that is being planned
  WaitReason wait_reason = WaitReason::kStep;
  int num_retractions = 0;
  int cached_tokens = -1;  // of the prompt, found in the cache when it was first admitted; -1: not yet

  int num_known() const { return static_cast<int>(tokens.size()); }
  int num_generated() const { return num_known() - num_prompt_tokens; }
  // All tokens that there will be once the steps in flight have run.
  int num_planned() const { return num_known() + num_in_flight; }
  bool is_decoding() const { return num_planned() > num_prompt_tokens && num_planned() - num_computed == 1; }
};

}  // namespace onepass
