// generate --prompts: a file of requests, answered together.
#pragma once

#include <string>

#include "cli/scheduler_options.h"
#include "cli/text_model.h"

namespace onepass {

struct GenerateBatchOptions {
  std::string prompts_path;  // a request a line, as prompt_line.h says; empty lines are passed over
  std::string output_path;   // empty: stdout
  SchedulerCliOptions scheduling;
  SamplingParams defaults;  // a line without a seed has defaults.seed + its number
  bool quiet = false;       // no progress, no summary
};

// Writes a JSON line for each request as it ends: {"line": N, "input_hash", "id", "choices": [{"index", "text",
// "token_ids", "finish_reason"}], "usage"} or {"line": N, "input_hash", "error": MESSAGE}. Lines that the output file
// holds already are not computed again. An error when a line has failed, now or in an earlier run, or the work was
// interrupted: running it again goes on. The output is left as it is, with an error, when it holds anything else or
// answers to other lines, or when another run writes to it.
Status generate_batch(const TextModel& model, const GenerateBatchOptions& options);

}  // namespace onepass
