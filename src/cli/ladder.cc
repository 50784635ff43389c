// onepass ladder: from naive attention to one pass, with what each rung costs.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "attention/reference/ladder.h"
#include "base/memory_info.h"
#include "cli/command.h"
#include "cli/options.h"
#include "cli/svg_plot.h"

namespace onepass {
namespace {

struct Options {
  ladder::Config config{.shape = {.n = 1024, .d = 64}, .dtype = DType::kF16};
  std::string dtype = "fp16";
  std::string plot_path;
  bool json = false;
};

Status check_memory(const ladder::Config& config) {
  const double needed = ladder::memory_needed(config);
  const double available = static_cast<double>(available_memory());
  if (needed <= 0.9 * available) return ok_status();
  return resource_exhausted("ladder: --seq: ", config.shape.n, " x ", config.shape.n, " scores and their inputs take ",
                            format_bytes(needed), ", expected at most ", format_bytes(0.9 * available),
                            " (9/10 of the memory available)");
}

std::string format_time(double seconds) {
  return seconds < 0.01 ? fmt::format("{:.2f} ms", 1e3 * seconds) : fmt::format("{:.0f} ms", 1e3 * seconds);
}

// "NaN in 990 rows", or the largest error.
std::string describe_error(const ladder::RungReport& rung) {
  if (rung.nan_rows > 0) return fmt::format("NaN in {} rows", rung.nan_rows);
  return fmt::format("{:.2g}", rung.max_error);
}

void print_table(const ladder::Config& config, const ladder::Report& report) {
  const ladder::Shape& shape = config.shape;
  const bool half = config.dtype == DType::kF16;
  fmt::print("One head: {} queries and keys, head_dim {}, {}, {}; {} queries and {} keys on chip at a time.\n", shape.n,
             shape.d, half ? "fp16 (every step rounded)" : "fp32", shape.causal ? "causal" : "full", shape.row_tile,
             shape.key_tile);
  fmt::print("Scores of standard deviation {:.3g}, the largest {:.1f}; exp(s) leaves {} past s = {}.\n\n",
             config.score_deviation, report.largest_score, half ? "fp16" : "fp32", half ? "11.09" : "88.72");

  fmt::print("{:<16}{:>12}{:>14}{:>15}{:>14}{:>11}  {}\n", "", "passes over", "bytes", "bytes", "intermediate", "",
             "largest error");
  fmt::print("{:<16}{:>12}{:>14}{:>15}{:>14}{:>11}  {}\n", "", "the scores", "read", "written", "bytes held", "time",
             "against float64");
  for (const ladder::RungReport& rung : report.rungs) {
    fmt::print("{:<16}{:>12}{:>14}{:>15}{:>14}{:>11}  {}\n", ladder::to_string(rung.rung),
               ladder::passes_over_scores(rung.rung), format_bytes(static_cast<double>(rung.cost.bytes_read)),
               format_bytes(static_cast<double>(rung.cost.bytes_written)),
               format_bytes(static_cast<double>(rung.cost.bytes_held)), format_time(rung.seconds),
               describe_error(rung));
  }

  fmt::print("\n");
  for (const ladder::RungReport& rung : report.rungs) {
    if (rung.nan_rows + rung.zero_rows == 0) continue;
    fmt::print(
        "{} lost {} of {} rows to overflow: {} hold NaN or inf, {} are all zero (a finite weight over an infinite "
        "sum).\n",
        ladder::to_string(rung.rung), rung.nan_rows + rung.zero_rows, shape.n, rung.nan_rows, rung.zero_rows);
  }
  const ladder::Meter& naive = report.rungs.front().cost;
  const ladder::Meter& one_pass = report.rungs.back().cost;
  const auto traffic = [](const ladder::Meter& cost) {
    return static_cast<double>(cost.bytes_read + cost.bytes_written);
  };
  fmt::print("one pass holds {} where naive holds {}, and moves {:.3g}x fewer bytes.\n",
             format_bytes(static_cast<double>(one_pass.bytes_held)),
             format_bytes(static_cast<double>(naive.bytes_held)), traffic(naive) / traffic(one_pass));
  fmt::print("Times are of scalar code on one thread that counts as it goes: compare them with each other only.\n");
}

void print_json(const ladder::Config& config, const ladder::Report& report) {
  nlohmann::ordered_json json = {{"seq", config.shape.n},
                                 {"head_dim", config.shape.d},
                                 {"dtype", to_string(config.dtype)},
                                 {"causal", config.shape.causal},
                                 {"row_tile", config.shape.row_tile},
                                 {"key_tile", config.shape.key_tile},
                                 {"seed", config.seed},
                                 {"score_deviation", config.score_deviation},
                                 {"largest_score", report.largest_score}};
  for (const ladder::RungReport& rung : report.rungs) {
    json["rungs"].push_back({{"name", ladder::to_string(rung.rung)},
                             {"passes_over_scores", ladder::passes_over_scores(rung.rung)},
                             {"bytes_read", rung.cost.bytes_read},
                             {"bytes_written", rung.cost.bytes_written},
                             {"intermediate_bytes", rung.cost.bytes_held},
                             {"seconds", rung.seconds},
                             {"max_error_of_finite_rows", rung.max_error},
                             {"nan_rows", rung.nan_rows},
                             {"zero_rows", rung.zero_rows}});
  }
  fmt::print("{}\n", json.dump(2));
}

ladder::Report run_with_progress(const ladder::Config& config) {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto show = [&](std::string_view what) {
    if (terminal) fmt::print(stderr, "\r\x1b[Kladder: {} tokens: {}", config.shape.n, what);
  };
  show("float64");
  ladder::Report report = ladder::run_ladder(config, [&](ladder::Rung rung) { show(ladder::to_string(rung)); });
  if (terminal) fmt::print(stderr, "\r\x1b[K");
  return report;
}

// Memory held and traffic against sequence length: lines by the closed formulas, dots as counted in runs of seq, seq/2,
// seq/4, ... tokens.
Plot make_plot(const ladder::Config& config, const ladder::Report& report) {
  constexpr int64_t kShortest = 64;
  const int64_t longest = std::max<int64_t>(262144, config.shape.n);
  const int64_t element_bytes = static_cast<int64_t>(size_of(config.dtype));

  // Where lines lie on each other, each shows: a wide pale one, a narrow one, dashes.
  struct Style {
    PlotStroke stroke;
    double width;
    double opacity;
  };
  constexpr Style kStyles[] = {{PlotStroke::kSolid, 9, 0.45},
                               {PlotStroke::kSolid, 2.5, 1},
                               {PlotStroke::kDashed, 3, 1},
                               {PlotStroke::kSolid, 3.5, 1}};
  PlotPanel held{.title = "Intermediate memory held",
                 .x = {.label = "sequence length (tokens)", .log_base = 2, .format = format_tokens},
                 .y = {.label = "bytes", .log_base = 2, .format = format_bytes},
                 .series = {},
                 .end_values = true};
  PlotPanel moved = held;
  moved.title = "Memory traffic: bytes read and written";
  for (ladder::Rung rung : ladder::kRungs) {
    const Style& style = kStyles[static_cast<size_t>(rung)];
    PlotSeries series{.label = std::string(ladder::to_string(rung)),
                      .line = {},
                      .points = {},
                      .color = "",
                      .stroke = style.stroke,
                      .width = style.width,
                      .opacity = style.opacity};
    held.series.push_back(series);
    moved.series.push_back(series);
  }

  const auto add = [&](ladder::Rung rung, int64_t n, const ladder::Meter& cost,
                       std::vector<PlotPoint> PlotSeries::*to) {
    const double x = static_cast<double>(n);
    (held.series[static_cast<size_t>(rung)].*to).push_back({x, static_cast<double>(cost.bytes_held)});
    (moved.series[static_cast<size_t>(rung)].*to)
        .push_back({x, static_cast<double>(cost.bytes_read + cost.bytes_written)});
  };
  for (int64_t n = kShortest; n <= longest; n *= 2) {
    ladder::Shape shape = config.shape;
    shape.n = n;
    for (ladder::Rung rung : ladder::kRungs) {
      add(rung, n, ladder::predicted_cost(rung, shape, element_bytes), &PlotSeries::line);
    }
  }
  const auto add_points = [&](int64_t n, const ladder::Report& counted) {
    for (const ladder::RungReport& rung : counted.rungs) add(rung.rung, n, rung.cost, &PlotSeries::points);
  };
  add_points(config.shape.n, report);
  for (int64_t n = config.shape.n / 2; n >= kShortest; n /= 2) {
    ladder::Config shorter = config;
    shorter.shape.n = n;
    add_points(n, run_with_progress(shorter));
  }
  return {.title = "From naive attention to one pass",
          .caption = fmt::format(
              "One head, head_dim {}, {}, {}; {} queries and {} keys on chip at a time. Dots: counted "
              "in runs of onepass ladder. Lines: closed formulas.",
              config.shape.d, config.dtype == DType::kF16 ? "fp16" : "fp32",
              config.shape.causal ? "causal" : "full attention", config.shape.row_tile, config.shape.key_tile),
          .panels = {held, moved}};
}

Status run_command(Options& options) {
  ONEPASS_ASSIGN_OR_RETURN(options.config.dtype, parse_float_dtype(options.dtype));
  ONEPASS_RETURN_IF_ERROR(check_memory(options.config));
  // Opened before the work begins: a path that cannot be written should not cost a minute.
  std::ofstream plot;
  if (!options.plot_path.empty()) plot.open(options.plot_path, std::ios::binary);
  const auto plot_status = [&] {
    if (!plot.fail()) return ok_status();
    return invalid_argument("ladder: --plot: cannot write ", options.plot_path, ": ", std::strerror(errno));
  };
  ONEPASS_RETURN_IF_ERROR(plot_status());

  const ladder::Report report = run_with_progress(options.config);
  if (options.json) {
    print_json(options.config, report);
  } else {
    print_table(options.config, report);
  }
  if (!options.plot_path.empty()) {
    plot << render_svg(make_plot(options.config, report));
    plot.close();
  }
  return plot_status();
}

}  // namespace

void add_ladder_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  ladder::Config& config = options->config;
  CLI::App* command = app.add_subcommand(
      "ladder",
      "Attention step by step: naive, safe softmax, online softmax, one pass, with bytes moved, memory held "
      "and error");
  command->add_option("--seq", config.shape.n, "Queries and keys")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command->add_option("--head-dim", config.shape.d, "Elements of a query, key or value")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "Of the inputs and of all arithmetic")
      ->check(CLI::IsMember({"fp16", "fp32"}))
      ->capture_default_str();
  command->add_flag("--causal", config.shape.causal, "Each query sees the keys up to its own");
  command
      ->add_option("--score-deviation", config.score_deviation,
                   "Standard deviation of the scores; fp16 overflows once one passes 11")
      ->check(number_range(0.0, 100.0))
      ->capture_default_str();
  command->add_option("--row-tile", config.shape.row_tile, "Queries on chip at a time")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--key-tile", config.shape.key_tile, "Keys on chip at a time")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--seed", config.seed, "Of the random inputs")
      ->check(CLI::Range(int64_t{0}, std::numeric_limits<int64_t>::max()))
      ->capture_default_str();
  command->add_option("--plot", options->plot_path,
                      "Write memory and traffic against sequence length to this SVG file");
  command->add_flag("--json", options->json, "Print JSON instead of the table");
  command->callback([options, &action] { action = [options] { return run_command(*options); }; });
}

}  // namespace onepass
