#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>

#include "base/check.h"
#include "cli/command.h"

namespace {

// An error is one line, whatever a template's raise_exception or a file's name brings along.
std::string one_line(std::string message) {
  for (char& c : message) {
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = ' ';
  }
  return message;
}

// CLI11 reads an empty text as the number 0, and an empty path names nothing.
void refuse_empty_values(CLI::App& app) {
  for (const char* name : {"--model", "--file", "--chat", "--tools", "--plot", "--output", "--prompt-file"}) {
    CLI::Option* const option = app.get_option_no_throw(name);
    if (option == nullptr || option->get_type_size() == 0) continue;  // 0: a flag
    option->check([](const std::string& text) { return text.empty() ? "expected a path, found none" : ""; }, "");
  }
  for (CLI::Option* option : app.get_options()) {
    const std::string type = option->get_type_name();  // "INT:INT in [0 - 9]", "[INT,FLOAT]", ...
    if (type.find("INT") != std::string::npos || type.find("FLOAT") != std::string::npos) {
      option->check([](const std::string& text) { return text.empty() ? "expected a number, found none" : ""; }, "");
    }
  }
  for (CLI::App* command : app.get_subcommands([](CLI::App*) { return true; })) refuse_empty_values(*command);
}

// What was not understood says more than what is missing because of it.
std::string usage_message(const CLI::App* app, const CLI::Error& error) {
  std::string message = one_line(error.what());
  const std::vector<std::string> unknown = app->remaining(/*recurse=*/true);
  if (error.get_name() == "RequiredError" && !unknown.empty()) {
    message = onepass::str_cat("no such command or option: ", onepass::printable(unknown.front(), 80));
  }
  return "onepass: " + message + " (--help says more)\n";
}

// Results that did not reach their reader are no results.
onepass::Status flush_output() {
  std::cout.flush();
  if (std::cout.good() && std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return onepass::ok_status();
  return absl::DataLossError("stdout: cannot write");
}

int fail(const std::string& message) {
  std::fprintf(stderr, "onepass: %s\n", one_line(message).c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("onepass: one-pass (FlashAttention) inference for large language models");
  app.name("onepass");
  app.set_version_flag("--version", ONEPASS_VERSION);
  app.require_subcommand(1);
  app.failure_message(usage_message);
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
  refuse_empty_values(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (app.exit(error) != 0) return 2;
    const onepass::Status status = flush_output();  // of --help or --version
    return status.ok() ? 0 : fail(std::string(status.message()));
  }
  try {
    onepass::Status status = action ? action() : onepass::ok_status();
    if (status.ok()) status = flush_output();
    return status.ok() ? 0 : fail(std::string(status.message()));
  } catch (const std::bad_alloc&) {
    return fail("out of memory");
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
