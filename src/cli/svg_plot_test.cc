#include "cli/svg_plot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

namespace onepass {
namespace {

Plot two_lines() {
  return {.title = "a < b & \"c\"",
          .caption = "",
          .panels = {{.title = "panel",
                      .x = {.label = "n", .log_base = 2, .format = format_tokens},
                      .y = {.label = "bytes", .log_base = 2, .format = format_bytes},
                      .series = {{.label = "linear", .line = {{64, 64}, {1024, 1024}}, .points = {}, .color = ""},
                                 {.label = "same", .line = {{64, 64}, {1024, 1024}}, .points = {}, .color = ""}}}}};
}

// The number that follows `attribute="` in each line that contains `marker` (an element stands on a line of its own).
std::vector<double> attributes(const std::string& svg, const std::string& marker, const std::string& attribute) {
  std::vector<double> values;
  std::istringstream lines(svg);
  for (std::string line; std::getline(lines, line);) {
    const size_t at = line.find(" " + attribute + "=\"");
    if (line.find(marker) == std::string::npos || at == std::string::npos) continue;
    values.push_back(std::stod(line.substr(at + attribute.size() + 3)));
  }
  return values;
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(SvgPlot, TicksAreRoundNumbersWithinTheAxis) {
  EXPECT_EQ(plot_ticks(0, 10, 0, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(plot_ticks(0, 0.1, 0, 4).size(), 3u);  // 0, 0.05, 0.1
  EXPECT_EQ(plot_ticks(64, 1024, 2, 8), (std::vector<double>{64, 128, 256, 512, 1024}));
  EXPECT_EQ(plot_ticks(1, 1e6, 10, 3), (std::vector<double>{1, 1e2, 1e4, 1e6}));
  for (double high : {1e-3, 0.7, 3.0, 99.0, 12345.0}) {
    const std::vector<double> ticks = plot_ticks(0, high, 0, 8);
    EXPECT_GE(ticks.size(), 3u) << high;
    EXPECT_LE(ticks.size(), 9u) << high;
    EXPECT_LE(ticks.back(), high * (1 + 1e-9));
  }
}

TEST(SvgPlot, FormatsBytesAndTokens) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1024), "1 KiB");
  EXPECT_EQ(format_bytes(1000), "0.977 KiB");
  EXPECT_EQ(format_bytes(1.5 * (1 << 20)), "1.5 MiB");
  EXPECT_EQ(format_bytes(0x1p40), "1 TiB");
  EXPECT_EQ(format_tokens(64), "64");
  EXPECT_EQ(format_tokens(131072), "128K");
}

TEST(SvgPlot, EscapesTextAndNamesEverySeries) {
  const std::string svg = render_svg(two_lines());
  EXPECT_NE(svg.find("a &lt; b &amp; &quot;c&quot;"), std::string::npos);
  EXPECT_NE(svg.find(">linear<"), std::string::npos);
  EXPECT_NE(svg.find(">same<"), std::string::npos);
  EXPECT_NE(svg.find(">1K</text>"), std::string::npos);
  EXPECT_EQ(count(svg, "<polyline"), 2u);
  EXPECT_EQ(count(svg, "<text"), count(svg, "</text>"));
}

TEST(SvgPlot, WritesTheEndValuesWhenAsked) {
  Plot plot = two_lines();
  EXPECT_EQ(render_svg(plot).find("\"400\">1 KiB<"), std::string::npos);
  plot.panels[0].end_values = true;
  EXPECT_NE(render_svg(plot).find("\"400\">1 KiB<"), std::string::npos);
}

TEST(SvgPlot, LabelsOfLinesThatEndTogetherStandApart) {
  const std::vector<double> y = attributes(render_svg(two_lines()), "class=\"series\"", "y");
  ASSERT_EQ(y.size(), 2u);
  EXPECT_GE(std::abs(y[0] - y[1]), 15.0);
}

TEST(SvgPlot, ALogarithmicAxisIsEvenAndGrowsUpwards) {
  Plot plot = two_lines();
  plot.panels[0].series[0].points = {{64, 64}, {256, 256}, {1024, 1024}};
  const std::string svg = render_svg(plot);
  const std::vector<double> cx = attributes(svg, "<circle", "cx");
  const std::vector<double> cy = attributes(svg, "<circle", "cy");
  ASSERT_EQ(cx.size(), 3u);
  EXPECT_NEAR(cx[1] - cx[0], cx[2] - cx[1], 0.2);
  EXPECT_NEAR(cy[1] - cy[0], cy[2] - cy[1], 0.2);
  EXPECT_GT(cx[1], cx[0]);
  EXPECT_LT(cy[1], cy[0]);
}

TEST(SvgPlot, LeavesOutWhatCannotBeDrawn) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  Plot plot = two_lines();
  plot.panels[0].series[0].points = {{64, 0}, {-1, 5}, {kNaN, 5}, {64, 1.0 / 0.0}};
  const std::string svg = render_svg(plot);
  EXPECT_EQ(count(svg, "<circle"), 0u);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);

  for (double base : {0.0, 2.0, 10.0}) {
    plot.panels[0].x.log_base = base;
    plot.panels[0].series.clear();
    const std::string empty = render_svg(plot);
    EXPECT_EQ(empty.find("nan"), std::string::npos);
    EXPECT_EQ(empty.find("inf"), std::string::npos);
  }
}

}  // namespace
}  // namespace onepass
