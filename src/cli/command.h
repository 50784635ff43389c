// How a subcommand joins the program: one file each, with one function declared here and called in main.cc.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "base/status.h"

namespace onepass {

// Set by the subcommand that the user chose; main() calls it once the whole command line has been read.
using Action = std::function<Status()>;

// Each adds its subcommand and options to `app`. What is wrong in the command line itself is refused while it is parsed
// (exit 2), by an option's validator or by refuse_usage; the action returns what is found later as a status (exit 1).
// Results go to stdout, all else to stderr.
void add_bench_command(CLI::App& app, Action& action);
void add_chat_command(CLI::App& app, Action& action);
void add_devices_command(CLI::App& app, Action& action);
void add_generate_command(CLI::App& app, Action& action);
void add_inspect_command(CLI::App& app, Action& action);
void add_ladder_command(CLI::App& app, Action& action);
void add_logits_command(CLI::App& app, Action& action);
void add_perplexity_command(CLI::App& app, Action& action);
void add_tokenize_command(CLI::App& app, Action& action);

// Of the bench group.
void add_bench_attention_command(CLI::App& bench, Action& action);
void add_bench_linear_command(CLI::App& bench, Action& action);
void add_bench_latency_command(CLI::App& bench, Action& action);
void add_bench_throughput_command(CLI::App& bench, Action& action);

}  // namespace onepass
