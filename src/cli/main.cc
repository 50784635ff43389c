#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/check.h"
#include "cli/command.h"

int main(int argc, char** argv) {
  CLI::App app("onepass: one-pass (FlashAttention) inference for large language models");
  app.name("onepass");
  app.set_version_flag("--version", ONEPASS_VERSION);
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return std::string("onepass: ") + error.what() + " (--help says more)\n";
  });
  onepass::Action action;
  onepass::add_bench_command(app, action);
  onepass::add_chat_command(app, action);
  onepass::add_devices_command(app, action);
  onepass::add_generate_command(app, action);
  onepass::add_inspect_command(app, action);
  onepass::add_ladder_command(app, action);
  onepass::add_logits_command(app, action);
  onepass::add_perplexity_command(app, action);
  onepass::add_tokenize_command(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    const onepass::Status status = action ? action() : onepass::ok_status();
    if (status.ok()) return 0;
    std::fprintf(stderr, "onepass: %s\n", std::string(status.message()).c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "onepass: %s\n", error.what());
  }
  return 1;
}
