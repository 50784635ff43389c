// onepass bench: the group of benchmarks.
#include "cli/command.h"

namespace onepass {

void add_bench_command(CLI::App& app, Action& action) {
  CLI::App* bench = app.add_subcommand("bench", "Benchmarks");
  bench->require_subcommand(1);
  add_bench_attention_command(*bench, action);
  add_bench_linear_command(*bench, action);
  add_bench_latency_command(*bench, action);
  add_bench_throughput_command(*bench, action);
}

}  // namespace onepass
